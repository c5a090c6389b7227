#include "parallel.h"

#include <dlfcn.h>

namespace ayllu {

namespace {
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using Number = int (*)();
Parallel gomp_parallel = nullptr;
Number omp_thread = nullptr, omp_threads = nullptr;
int wanted = 1;

struct Region {
    void (*body)(void*, int, int);
    void* data;
};
void enter(void* data) {
    const Region& region = *static_cast<Region*>(data);
    region.body(region.data, omp_thread(), omp_threads());
}
}  // namespace

bool use_openmp(const char* library, int threads) {
    void* handle = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
    if (!handle) return false;
    auto parallel = reinterpret_cast<Parallel>(dlsym(handle, "GOMP_parallel"));
    auto thread = reinterpret_cast<Number>(dlsym(handle, "omp_get_thread_num"));
    auto count = reinterpret_cast<Number>(dlsym(handle, "omp_get_num_threads"));
    if (!parallel || !thread || !count) return false;
    gomp_parallel = parallel, omp_thread = thread, omp_threads = count;
    wanted = threads < 1 ? 1 : threads;
    return true;
}

int thread_count() { return gomp_parallel ? wanted : 1; }

void run_on_threads(void (*body)(void*, int, int), void* data, int threads) {
    if (threads <= 1 || !gomp_parallel) return body(data, 0, 1);
    Region region{body, data};
    gomp_parallel(enter, &region, unsigned(threads), 0);
}

}  // namespace ayllu
