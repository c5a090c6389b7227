// What a step works on besides weights and cache: activations, and the jobs of its attention.
#pragma once

#include <algorithm>
#include <vector>

#include "phases.h"
#include "step.h"

namespace ayllu {

// Activations of some rows in every form that the matrices of the model ask for.
struct Rows {
    size_t stride = 0;
    std::vector<float> f32, scales;
    std::vector<int8_t> q;
    std::vector<int32_t> sums;

    // Layers may differ in width: the stride fits the widest.
    void resize(size_t rows, size_t columns) {
        stride = std::max(stride, round_up(columns, SUPERBLOCK));
        if (f32.size() >= rows * stride) return;
        f32.assign(rows * stride, 0.f), q.assign(rows * stride, 0);
        scales.assign(rows * stride / GROUP, 0.f), sums.assign(rows * stride / GROUP, 0);
    }
    float* row(size_t r) { return f32.data() + r * stride; }
    // From the float32 row to the form for `format`.
    void convert(const Kernels& k, size_t r, size_t columns, Format format) {
        if (format == INT8 || format == INT4) {
            const size_t g = r * stride / GROUP;
            k.quantise(row(r), columns, q.data() + r * stride, scales.data() + g, sums.data() + g,
                       format == INT8 ? 128 : 8);
        }
    }
    void copy_row(size_t to, const Rows& from, size_t r) {
        const size_t groups = stride / GROUP;
        std::copy_n(from.f32.data() + r * stride, stride, f32.data() + to * stride);
        std::copy_n(from.q.data() + r * stride, stride, q.data() + to * stride);
        std::copy_n(from.scales.data() + r * groups, groups, scales.data() + to * groups);
        std::copy_n(from.sums.data() + r * groups, groups, sums.data() + to * groups);
    }
    Activations from(size_t r) const {
        const size_t g = r * stride / GROUP;
        return {f32.data() + r * stride, q.data() + r * stride, scales.data() + g, sums.data() + g, stride};
    }
};

inline void grow(std::vector<float>& v, size_t n) {
    if (v.size() < n) v.resize(n);
}

struct Scratch {
    std::vector<float> x, qkv, joint, router, pair_out;  // residual stream, projections, router logits
    Rows normed, attended, hidden, gathered, pair_hidden;
    std::vector<int32_t> chosen, pair_token, pair_slot, expert_start;
    std::vector<float> weights;
    std::vector<std::vector<float>> scores;  // of each thread
    Company company;
};

// Jobs of attention: `rows` (token, head) pairs of one sequence and one key-value head.
struct AttentionJob {
    size_t token, tokens, kv_head;
};

// What the threads of one step share.
struct Model::Task {
    const Batch& batch;
    Scratch& s;
    Phases phases;
    std::vector<AttentionJob> jobs;
    Clock::duration waited{};  // of the calling thread, which is number 0
    Clock::time_point finished{};
};

}  // namespace ayllu
