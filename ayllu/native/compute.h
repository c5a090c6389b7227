// The kernels of the decode step, written once on sixteen lanes and compiled for each machine level.
// Included by compute_avx512.cpp, compute_avx2.cpp and compute_portable.cpp only.
//
// Each output is the same chain of operations whatever the number of rows, so that a text comes out the same
// alone, in a batch, and with its beginning taken from the cache.

#include <algorithm>

#include "kernel_table.h"
#include "scalar.h"
#include "simd.h"

namespace ayllu::LEVEL {

constexpr size_t TILE = 8;      // rows of x that share one pass over the weights
constexpr size_t AHEAD = 4096;  // bytes

// Weights are read once, in order. Asking for their lines a few kilobytes early, into the second-level cache, gives
// 1.5 times the rate from memory and 2 times from the third-level cache (lab log).
template <size_t LINES>
SIMD_INLINE void ahead(const uint8_t* p) {
    for (size_t i = 0; i < LINES; ++i) __builtin_prefetch(p + AHEAD + i * 64, 0, 2);
}

template <size_t R>
SIMD_INLINE void finish(Float* sums, float* y, size_t y_stride, bool add, const float* bias) {
    for (size_t r = 0; r < R; ++r) {
        float* to = y + r * y_stride;
        Float value = sums[r];
        if (bias) value = fma(all(1.f), load(bias), value);
        if (add) value = fma(all(1.f), load(to), value);
        store(to, value);
    }
}

template <size_t R>
SIMD_INLINE void block_int8(const Matrix& w, const uint8_t* data, const Activations& x, size_t row, Float* sums) {
    const size_t count = w.superblocks();
    for (size_t s = 0; s < count; ++s, data += 64 + SUPERBLOCK * LANES) {
        for (size_t half = 0; half < 2; ++half) {
            const size_t g = s * 2 + half;
            Int dots[R];
            for (size_t r = 0; r < R; ++r) dots[r] = all_int(x.sums[(row + r) * (x.stride / GROUP) + g]);
            const uint8_t* lines = data + 64 + half * 512;
            half ? ahead<8>(data + 9 * 64) : ahead<9>(data);
            const int8_t* q = x.q + row * x.stride + g * GROUP;
            for (size_t i = 0; i < 8; ++i) {
                const Line line = load_line(lines + i * 64);
                for (size_t r = 0; r < R; ++r) dots[r] = dot4(dots[r], line, q + r * x.stride + i * 4);
            }
            const Float scale = load_half(reinterpret_cast<const uint16_t*>(data) + half * 16);
            for (size_t r = 0; r < R; ++r) {
                const Float both = mul(scale, all(x.scales[(row + r) * (x.stride / GROUP) + g]));
                sums[r] = fma(to_float(dots[r]), both, sums[r]);
            }
        }
    }
}

template <size_t R>
SIMD_INLINE void block_int4(const Matrix& w, const uint8_t* data, const Activations& x, size_t row, Float* sums) {
    const size_t count = w.superblocks(), groups = x.stride / GROUP;
    for (size_t s = 0; s < count; ++s, data += 64 + SUPERBLOCK * LANES / 2) {
        Int low[R], high[R];
        for (size_t r = 0; r < R; ++r) {
            low[r] = all_int(x.sums[(row + r) * groups + s * 2]);
            high[r] = all_int(x.sums[(row + r) * groups + s * 2 + 1]);
        }
        const int8_t* q = x.q + row * x.stride + s * SUPERBLOCK;
        ahead<9>(data);
        for (size_t i = 0; i < 8; ++i) {
            const Line both = load_line(data + 64 + i * 64);
            const Line first = low_nibbles(both), second = high_nibbles(both);
            for (size_t r = 0; r < R; ++r) {
                low[r] = dot4(low[r], first, q + r * x.stride + i * 4);
                high[r] = dot4(high[r], second, q + r * x.stride + GROUP + i * 4);
            }
        }
        const Float scale0 = load_half(reinterpret_cast<const uint16_t*>(data));
        const Float scale1 = load_half(reinterpret_cast<const uint16_t*>(data) + 16);
        for (size_t r = 0; r < R; ++r) {
            const float* scales = x.scales + (row + r) * groups + s * 2;
            sums[r] = fma(to_float(low[r]), mul(scale0, all(scales[0])), sums[r]);
            sums[r] = fma(to_float(high[r]), mul(scale1, all(scales[1])), sums[r]);
        }
    }
}

// The weights are widened and multiplied with float32 activations: on the machines measured VDPBF16PS has a third of
// that rate, and less precision.
template <size_t R>
SIMD_INLINE void block_bf16(const Matrix& w, const uint8_t* data, const Activations& x, size_t row, Float* sums) {
    const size_t pairs = w.superblocks() * SUPERBLOCK / 2;
    Float other[R];
    for (size_t r = 0; r < R; ++r) other[r] = all(0.f);
    for (size_t i = 0; i < pairs; ++i) {
        if (i % 8 == 0) ahead<8>(data + i * 64);
        const Line line = load_line(data + i * 64);
        const Float even = even_bf16(line), odd = odd_bf16(line);
        for (size_t r = 0; r < R; ++r) {
            const float* two = x.f32 + (row + r) * x.stride + i * 2;
            sums[r] = fma(even, all(two[0]), sums[r]);
            other[r] = fma(odd, all(two[1]), other[r]);
        }
    }
    for (size_t r = 0; r < R; ++r) sums[r] = fma(all(1.f), other[r], sums[r]);
}

template <size_t R>
SIMD_INLINE void block_f32(const Matrix& w, const uint8_t* data, const Activations& x, size_t row, Float* sums) {
    const float* lines = reinterpret_cast<const float*>(data);
    const size_t columns = w.superblocks() * SUPERBLOCK;
    Float other[R];
    for (size_t r = 0; r < R; ++r) other[r] = all(0.f);
    for (size_t k = 0; k < columns; k += 2) {
        if (k % 8 == 0) ahead<8>(data + k * 64);
        const Float even = load(lines + k * LANES), odd = load(lines + (k + 1) * LANES);
        for (size_t r = 0; r < R; ++r) {
            const float* values = x.f32 + (row + r) * x.stride + k;
            sums[r] = fma(even, all(values[0]), sums[r]);
            other[r] = fma(odd, all(values[1]), other[r]);
        }
    }
    for (size_t r = 0; r < R; ++r) sums[r] = fma(all(1.f), other[r], sums[r]);
}

template <size_t R>
static void tile(const Matrix& w, const Activations& x, size_t row, float* y, size_t y_stride, bool add,
                 size_t block) {
    const uint8_t* data = w.data + block * w.block_bytes();
    Float sums[R];
    for (size_t r = 0; r < R; ++r) sums[r] = all(0.f);
    switch (w.format) {
        case INT8: block_int8<R>(w, data, x, row, sums); break;
        case INT4: block_int4<R>(w, data, x, row, sums); break;
        case BF16: block_bf16<R>(w, data, x, row, sums); break;
        default: block_f32<R>(w, data, x, row, sums); break;
    }
    finish<R>(sums, y + row * y_stride + block * LANES, y_stride, add,
              w.bias ? w.bias + block * LANES : nullptr);
}

static void matmul(const Matrix& w, const Activations& x, size_t rows, float* y, size_t y_stride, bool add,
                   size_t first, size_t last) {
    for (size_t block = first; block < last; ++block) {
        size_t row = 0;
        for (; row + TILE <= rows; row += TILE) tile<TILE>(w, x, row, y, y_stride, add, block);
        switch (rows - row) {
            case 7: tile<7>(w, x, row, y, y_stride, add, block); break;
            case 6: tile<6>(w, x, row, y, y_stride, add, block); break;
            case 5: tile<5>(w, x, row, y, y_stride, add, block); break;
            case 4: tile<4>(w, x, row, y, y_stride, add, block); break;
            case 3: tile<3>(w, x, row, y, y_stride, add, block); break;
            case 2: tile<2>(w, x, row, y, y_stride, add, block); break;
            case 1: tile<1>(w, x, row, y, y_stride, add, block); break;
            default: break;
        }
    }
}

static void quantise(const float* x, size_t columns, int8_t* q, float* scales, int32_t* sums, int offset) {
    const size_t padded = round_up(columns, SUPERBLOCK);
    for (size_t g = 0; g < padded / GROUP; ++g) {
        float values[GROUP];
        const size_t at = g * GROUP, here = at >= columns ? 0 : std::min(GROUP, columns - at);
        for (size_t i = 0; i < here; ++i) values[i] = x[at + i];
        for (size_t i = here; i < GROUP; ++i) values[i] = 0.f;
        float top = 0.f;
#pragma omp simd reduction(max : top)
        for (size_t i = 0; i < GROUP; ++i) {
            const float a = std::fabs(values[i]);
            top = a > top ? a : top;
        }
        const float inverse = top > 0.f ? 127.f / top : 0.f;
        int32_t sum = 0;
        for (size_t i = 0; i < GROUP; ++i) {
            const int32_t v = int32_t(std::nearbyintf(values[i] * inverse));
            q[at + i] = int8_t(v);
            sum += v;
        }
        scales[g] = top / 127.f;
        sums[g] = -offset * sum;
    }
}

// ---- attention over the paged cache
template <size_t R>
SIMD_INLINE void scores_of(const AttentionRows& a, size_t row, const uint8_t* keys, const int8_t* const* q,
                           const float* q_scales, Float* out) {
    for (size_t r = 0; r < R; ++r) out[r] = all(0.f);
    if (a.type == INT8) {
        // Stored as k + 128 in the weights' layout; what the offset adds is taken back by the start value.
        Int dots[R];
        for (size_t r = 0; r < R; ++r) {
            int32_t start;
            std::memcpy(&start, q[row + r] + a.dim, 4);
            dots[r] = all_int(start);
        }
        for (size_t i = 0; i < a.dim / 4; ++i) {
            const Line line = load_line(keys + i * 64);
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

template <size_t R>
SIMD_INLINE void weigh_values(const AttentionRows& a, size_t row, size_t stride, size_t block0, size_t block1) {
    const size_t key_bytes = head_bytes(a.type, a.dim);
    for (size_t d = 0; d < a.dim; d += LANES) {
        Float sums[R];
        for (size_t r = 0; r < R; ++r) sums[r] = all(0.f);
        for (size_t b = block0; b < block1; ++b) {
            const uint8_t* values = a.blocks[b] + key_bytes;
            for (size_t t = 0; t < CACHE_TOKENS; ++t) {
                Float v;
                if (a.type == INT8)
                    v = load_i8(reinterpret_cast<const int8_t*>(values) + t * a.dim + d);
                else if (a.type == BF16)
                    v = load_bf16(reinterpret_cast<const uint16_t*>(values) + t * a.dim + d);
                else
                    v = load(reinterpret_cast<const float*>(values) + t * a.dim + d);
                for (size_t r = 0; r < R; ++r)
                    sums[r] = fma(v, all(a.scratch[(row + r) * stride + b * CACHE_TOKENS + t]), sums[r]);
            }
        }
        for (size_t r = 0; r < R; ++r) store(a.out[row + r] + d, sums[r]);
    }
}

template <size_t R>
static void attend_rows(const AttentionRows& a, size_t row, size_t stride, const int8_t* const* q,
                        const float* q_scales) {
    size_t begin = SIZE_MAX, end = 0;
    for (size_t r = row; r < row + R; ++r) begin = std::min(begin, a.first[r]), end = std::max(end, a.last[r]);
    const size_t block0 = begin / CACHE_TOKENS, block1 = (end + CACHE_TOKENS - 1) / CACHE_TOKENS;
    for (size_t b = block0; b < block1; ++b) {
        Float scores[R];
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

// ---- the small things between the products
static void rms_norm(const float* x, const float* w, float* y, size_t width, float eps) {
    float lanes[16] = {};
    size_t at = 0;
    for (; at + 16 <= width; at += 16)
        for (size_t i = 0; i < 16; ++i) lanes[i] += x[at + i] * x[at + i];
    float sum = 0.f;
    for (float lane : lanes) sum += lane;
    for (; at < width; ++at) sum += x[at] * x[at];
    const float scale = 1.f / std::sqrt(sum / float(width) + eps);
    for (size_t i = 0; i < width; ++i) y[i] = x[i] * scale * (w ? w[i] : 1.f);
}

static void swiglu(const float* gate, const float* up, float* y, size_t width) {
    for (size_t i = 0; i < width; ++i) y[i] = gate[i] / (1.f + exp_fast(-gate[i])) * up[i];
}

extern const Kernels TABLE;
const Kernels TABLE{NAME, matmul, quantise, attend, rms_norm, swiglu};

}  // namespace ayllu::LEVEL
