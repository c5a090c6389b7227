// Attention of a few query rows over the paged cache. Included by compute.h only.
#pragma once

#include <algorithm>

#include "kernel_table.h"
#include "scalar.h"
#include "simd.h"

namespace ayllu::LEVEL {

constexpr size_t NEXT = 4;  // blocks: the cache is scattered, and no processor guesses where it goes on

SIMD_INLINE void soon(const uint8_t* p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

template <size_t R>
SIMD_INLINE void scores_of(const AttentionRows& a, size_t row, const uint8_t* keys, const int8_t* const* q,
                           const float* q_scales, Float* out) {
    for (size_t r = 0; r < R; ++r) out[r] = all(0.f);
    if (a.type == INT8) {
        // Stored as k + 128 in the weights' layout; what the offset adds, `bytes_start` takes back.
        Int dots[R];
        for (size_t r = 0; r < R; ++r) {
            int32_t start;
            std::memcpy(&start, q[row + r] + a.dim, 4);
            dots[r] = bytes_start(start);
        }
        for (size_t i = 0; i < a.dim / 4; ++i) {
            const Bytes line = bytes_of(load_line(keys + i * 64));
            for (size_t r = 0; r < R; ++r) dots[r] = dot4(dots[r], line, q[row + r] + i * 4);
        }
        const Float scale = load(reinterpret_cast<const float*>(keys + a.dim * CACHE_TOKENS));
        for (size_t r = 0; r < R; ++r) out[r] = mul(to_float(dots[r]), mul(scale, all(q_scales[row + r])));
        return;
    }
    for (size_t d = 0; d < a.dim; ++d) {
        const Float k = a.type == BF16 ? load_bf16(reinterpret_cast<const uint16_t*>(keys) + d * CACHE_TOKENS)
                                       : load(reinterpret_cast<const float*>(keys) + d * CACHE_TOKENS);
        for (size_t r = 0; r < R; ++r) out[r] = fma(k, all(a.query[row + r][d]), out[r]);
    }
}

SIMD_INLINE Float cached_values(Format type, const uint8_t* values, size_t at) {
    if (type == INT8) return load_i8(reinterpret_cast<const int8_t*>(values) + at);
    if (type == BF16) return load_bf16(reinterpret_cast<const uint16_t*>(values) + at);
    return load(reinterpret_cast<const float*>(values) + at);
}

// V times sixteen columns of the outputs of R rows, from column d on.
template <size_t R, size_t V>
SIMD_INLINE void weigh_columns(const AttentionRows& a, size_t row, size_t stride, size_t block0, size_t block1,
                               size_t d) {
    const size_t key_bytes = head_bytes(a.type, a.dim);
    Float sums[R][V];
    for (auto& of_row : sums)
        for (Float& sum : of_row) sum = all(0.f);
    for (size_t b = block0; b < block1; ++b) {
        const uint8_t* values = a.blocks[b] + key_bytes;
        if (b + NEXT < block1) soon(a.blocks[b + NEXT] + key_bytes, key_bytes);
        const float* weights = a.scratch + row * stride + b * CACHE_TOKENS;
        for (size_t t = 0; t < CACHE_TOKENS; ++t) {
            Float v[V];
            for (size_t i = 0; i < V; ++i) v[i] = cached_values(a.type, values, t * a.dim + d + i * LANES);
            for (size_t r = 0; r < R; ++r) {
                const Float weight = all(weights[r * stride + t]);
                for (size_t i = 0; i < V; ++i) sums[r][i] = fma(v[i], weight, sums[r][i]);
            }
        }
    }
    for (size_t r = 0; r < R; ++r)
        for (size_t i = 0; i < V; ++i) store(a.out[row + r] + d + i * LANES, sums[r][i]);
}

template <size_t R>
SIMD_INLINE void weigh_values(const AttentionRows& a, size_t row, size_t stride, size_t block0, size_t block1) {
    constexpr size_t V = R > 4 ? 2 : 4;  // sixteen sums at most
    size_t d = 0;
    for (; d + V * LANES <= a.dim; d += V * LANES) weigh_columns<R, V>(a, row, stride, block0, block1, d);
    for (; d < a.dim; d += LANES) weigh_columns<R, 1>(a, row, stride, block0, block1, d);
}

template <size_t R>
static void attend_rows(const AttentionRows& a, size_t row, size_t stride, const int8_t* const* q,
                        const float* q_scales) {
    size_t begin = SIZE_MAX, end = 0;
    for (size_t r = row; r < row + R; ++r) begin = std::min(begin, a.first[r]), end = std::max(end, a.last[r]);
    const size_t block0 = begin / CACHE_TOKENS, block1 = (end + CACHE_TOKENS - 1) / CACHE_TOKENS;
    for (size_t b = block0; b < block1; ++b) {
        Float scores[R];
        if (b + NEXT < block1) soon(a.blocks[b + NEXT], head_bytes(a.type, a.dim));
        scores_of<R>(a, row, a.blocks[b], q, q_scales, scores);
        for (size_t r = 0; r < R; ++r) store(a.scratch + (row + r) * stride + b * CACHE_TOKENS, scores[r]);
    }
    for (size_t r = row; r < row + R; ++r) {
        float* p = a.scratch + r * stride;
        const size_t first = a.first[r], last = a.last[r];
        const float top = largest(p + first, last - first);
        // Sixteen partial sums from the row's own first position on, whatever rows share the pass.
        float lanes[16] = {};
        for (size_t t = block0 * CACHE_TOKENS; t < first; ++t) p[t] = 0.f;
        for (size_t t = last; t < block1 * CACHE_TOKENS; ++t) p[t] = 0.f;
        size_t t = first;
        for (; t + 16 <= last; t += 16)
            for (size_t i = 0; i < 16; ++i) lanes[i] += p[t + i] = exp_fast(p[t + i] - top);
        for (size_t i = 0; t < last; ++t, ++i) lanes[i] += p[t] = exp_fast(p[t] - top);
        float sum = 0.f;
        for (float lane : lanes) sum += lane;
        const float inverse = 1.f / sum;
        if (a.type == INT8) {
            for (size_t b = first / CACHE_TOKENS; b * CACHE_TOKENS < last; ++b) {
                const uint8_t* values = a.blocks[b] + head_bytes(a.type, a.dim);
                const float* scales = reinterpret_cast<const float*>(values + a.dim * CACHE_TOKENS);
                for (size_t i = 0; i < CACHE_TOKENS; ++i) p[b * CACHE_TOKENS + i] *= inverse * scales[i];
            }
        } else {
            for (t = first; t < last; ++t) p[t] *= inverse;
        }
    }
    weigh_values<R>(a, row, stride, block0, block1);
}

static void attend(const AttentionRows& a) {
    size_t end = 0;
    for (size_t r = 0; r < a.rows; ++r) end = std::max(end, a.last[r]);
    const size_t stride = round_up(end, CACHE_TOKENS);
    int8_t quantised[MOST_ROWS][1024 + 4];
    const int8_t* q[MOST_ROWS] = {};
    float q_scales[MOST_ROWS] = {};
    if (a.type == INT8)
        for (size_t r = 0; r < a.rows; ++r) {
            float top = 0.f;
            for (size_t d = 0; d < a.dim; ++d) top = std::max(top, std::fabs(a.query[r][d]));
            const float inverse = top > 0.f ? 127.f / top : 0.f;
            int32_t sum = 0;
            for (size_t d = 0; d < a.dim; ++d) {
                const int32_t v = int32_t(std::nearbyintf(a.query[r][d] * inverse));
                quantised[r][d] = int8_t(v), sum += v;
            }
            sum *= -128;
            std::memcpy(quantised[r] + a.dim, &sum, 4);
            q[r] = quantised[r], q_scales[r] = top / 127.f;
        }
    size_t row = 0;
    for (; row + 8 <= a.rows; row += 8) attend_rows<8>(a, row, stride, q, q_scales);
    for (; row + 4 <= a.rows; row += 4) attend_rows<4>(a, row, stride, q, q_scales);
    for (; row + 2 <= a.rows; row += 2) attend_rows<2>(a, row, stride, q, q_scales);
    for (; row < a.rows; ++row) attend_rows<1>(a, row, stride, q, q_scales);
}

}  // namespace ayllu::LEVEL
