// Rows over threads, on PyTorch's own OpenMP pool.
//
// A second pool would fight with PyTorch's spinning threads for the same cores, so the library asks
// the OpenMP runtime that PyTorch has loaded (its GOMP_parallel entry) and falls back to one thread.
#pragma once

#include <cstddef>
#include <vector>

namespace ayllu {

// Looks up the runtime in a shared library that is loaded already; false when it isn't there.
bool use_openmp(const char* library, int threads);
int thread_count();
void run_on_threads(void (*body)(void*, int thread, int threads), void* data, int threads);

// body(first, last, thread) on even slices of [0, rows); alone when there are fewer than `enough`.
template <class Body>
void parallel_rows(size_t rows, const Body& body, size_t enough = 64) {
    struct Job {
        const Body* body;
        size_t rows;
    } job{&body, rows};
    const int threads = rows < enough ? 1 : thread_count();
    run_on_threads(
        [](void* data, int thread, int count) {
            const Job& j = *static_cast<Job*>(data);
            const size_t first = j.rows * size_t(thread) / size_t(count);
            const size_t last = j.rows * size_t(thread + 1) / size_t(count);
            if (first < last) (*j.body)(first, last, thread);
        },
        &job, threads);
}

// One float vector a thread, added up in thread order.
class PartialSums {
  public:
    explicit PartialSums(size_t width) : width_(width), values_(width * size_t(thread_count()), 0.f) {}
    float* of(int thread) { return values_.data() + width_ * size_t(thread); }
    void add_to(float* out) const {
        for (size_t at = 0; at < values_.size(); ++at) out[at % width_] += values_[at];
    }

  private:
    size_t width_;
    std::vector<float> values_;
};

}  // namespace ayllu
