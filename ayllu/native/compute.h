// The kernels of the decode step, written once on sixteen lanes and compiled for each machine level.
// Included by compute_amx.cpp, compute_avx512.cpp, compute_avx2.cpp and compute_portable.cpp only.
//
// Each output is the same chain of operations whatever the number of rows, so that a text comes out the same
// alone, in a batch, and with its beginning taken from the cache.

#include <algorithm>
#include <vector>

#include "kernel_table.h"
#include "scalar.h"
#include "simd.h"

namespace ayllu::LEVEL {

constexpr size_t TILE = 8;      // rows of x that share one pass over the weights
constexpr size_t AHEAD = 4096;  // bytes

// Weights are read once, in order: eight lines are asked for a few kilobytes early, across the page borders where
// the processor's own prefetching stops.
SIMD_INLINE void ahead(const uint8_t* p) {
    for (size_t i = 0; i < 8; ++i) __builtin_prefetch(p + AHEAD + i * 64, 0, 0);
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
            ahead(lines);
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
        ahead(data + 64);
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

template <size_t R>
SIMD_INLINE void block_bf16(const Matrix& w, const uint8_t* data, const Activations& x, size_t row, Float* sums) {
    const size_t pairs = w.superblocks() * SUPERBLOCK / 2;
    // Two chains a row, even and odd pairs, hide the latency of the dot product; they meet at the end.
    Float other[R];
    for (size_t r = 0; r < R; ++r) other[r] = all(0.f);
    for (size_t i = 0; i < pairs; i += 2) {
        if (i % 8 == 0) ahead(data + i * 64);
        const Line even = load_line(data + i * 64), odd = load_line(data + i * 64 + 64);
        for (size_t r = 0; r < R; ++r) {
            const uint16_t* two = x.bf16 + (row + r) * x.stride + i * 2;
            sums[r] = dot2(sums[r], even, two);
            other[r] = dot2(other[r], odd, two + 2);
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

#if defined(__AMX_INT8__)
static void matmul(const Matrix&, const Activations&, size_t, float*, size_t, bool, size_t, size_t);

// Advanced matrix extensions: the whole numbers of sixteen rows by sixteen, a group of columns at a time; the
// floating-point operations round them are those of block_int8, in the same order.
constexpr size_t TILE_ROWS = 16;

struct alignas(64) TileShapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t columns[16] = {};
    uint8_t rows[16] = {};
};

static void tile_matmul(const Matrix& w, const Activations& x, size_t rows, float* y, size_t y_stride, bool add,
                        size_t first, size_t last) {
    TileShapes shapes;
    for (int i : {0, 1}) shapes.rows[i] = 16, shapes.columns[i] = 64;          // whole numbers
    for (int i : {2, 3}) shapes.rows[i] = 16, shapes.columns[i] = GROUP;       // activations
    for (int i : {4, 5}) shapes.rows[i] = GROUP / 4, shapes.columns[i] = 64;   // weights
    _tile_loadconfig(&shapes);
    const size_t whole = rows / TILE_ROWS * TILE_ROWS, groups = x.stride / GROUP;
    alignas(64) int32_t dots[2][TILE_ROWS * LANES];
    for (size_t block = first; block < last; ++block) {
        for (size_t row = 0; row < whole; row += TILE_ROWS) {
            const uint8_t* data = w.data + block * w.block_bytes();
            Float sums[TILE_ROWS];
            for (auto& sum : sums) sum = all(0.f);
            for (size_t s = 0; s < w.superblocks(); ++s, data += superblock_bytes(INT8)) {
                const int8_t* q = x.q + row * x.stride + s * SUPERBLOCK;
                _tile_zero(0);
                _tile_loadd(2, q, x.stride);
                _tile_loadd(4, data + 64, 64);
                _tile_dpbsud(0, 2, 4);
                _tile_zero(1);
                _tile_loadd(3, q + GROUP, x.stride);
                _tile_loadd(5, data + 64 + 512, 64);
                _tile_dpbsud(1, 3, 5);
                _tile_stored(0, dots[0], 64);
                _tile_stored(1, dots[1], 64);
                for (size_t half = 0; half < 2; ++half) {
                    const Float scale = load_half(reinterpret_cast<const uint16_t*>(data) + half * 16);
                    const size_t g = s * 2 + half;
                    for (size_t r = 0; r < TILE_ROWS; ++r) {
                        const size_t at = (row + r) * groups + g;
                        const Int dot = _mm512_add_epi32(_mm512_load_si512(dots[half] + r * LANES), all_int(x.sums[at]));
                        sums[r] = fma(to_float(dot), mul(scale, all(x.scales[at])), sums[r]);
                    }
                }
            }
            finish<TILE_ROWS>(sums, y + row * y_stride + block * LANES, y_stride, add,
                              w.bias ? w.bias + block * LANES : nullptr);
        }
    }
    _tile_release();
    if (whole < rows) {
        const Activations rest{x.f32 + whole * x.stride,    x.bf16 + whole * x.stride,   x.q + whole * x.stride,
                               x.scales + whole * groups, x.sums + whole * groups, x.stride};
        matmul(w, rest, rows - whole, y + whole * y_stride, y_stride, add, first, last);
    }
}
#endif

// int4 lines of a row block as int8 ones, still q + 8: many rows then share the unpacking.
static void widen_block(const Matrix& w, size_t block, uint8_t* out) {
    const uint8_t* data = w.data + block * w.block_bytes();
    for (size_t s = 0; s < w.superblocks(); ++s, data += superblock_bytes(INT4), out += superblock_bytes(INT8)) {
        std::memcpy(out, data, 64);
        for (size_t i = 0; i < 8; ++i) {
            const Line both = load_line(data + 64 + i * 64);
            store_line(out + 64 + i * 64, low_nibbles(both));
            store_line(out + 64 + 512 + i * 64, high_nibbles(both));
        }
    }
}

static void matmul(const Matrix& w, const Activations& x, size_t rows, float* y, size_t y_stride, bool add,
                   size_t first, size_t last) {
    if (w.format == INT4 && rows >= 2 * TILE) {
        // The start values already are those of an offset of 8.
        std::vector<uint8_t> wide(w.superblocks() * superblock_bytes(INT8) + 64);
        uint8_t* lines = wide.data() + (64 - reinterpret_cast<uintptr_t>(wide.data()) % 64) % 64;
        for (size_t block = first; block < last; ++block) {
            widen_block(w, block, lines);
            Matrix one = w;
            one.data = lines, one.format = INT8, one.rows = LANES;
            one.bias = w.bias ? w.bias + block * LANES : nullptr;
            matmul(one, x, rows, y + block * LANES, y_stride, add, 0, 1);
        }
        return;
    }
#if defined(__AMX_INT8__)
    if (w.format == INT8 && rows >= TILE_ROWS) return tile_matmul(w, x, rows, y, y_stride, add, first, last);
#endif
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
