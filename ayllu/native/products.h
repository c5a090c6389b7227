// Products of packed weights with some rows of activations. Included by compute.h only.
//
// One row, or a few: the weights stream by once, a block at a time (decoding is bound by reading them). Many rows, a
// prompt: a block or two of weights stay near while tiles of some rows pass, so that each value that is loaded is used
// several times (the register tiling of Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication",
// 2008); the rows pass in panels that the second-level cache holds. Whichever way, an output is the same chain of
// operations.
#pragma once

#include <vector>

#include "kernel_table.h"
#include "simd.h"

namespace ayllu::LEVEL {

constexpr size_t FEW = 8;             // rows of x that don't make tiles
constexpr size_t AHEAD = 4096;        // bytes
constexpr size_t PANEL = 512 * 1024;  // bytes of activations that stay in the second-level cache
constexpr size_t STRETCH = 128;       // columns: of six rows and a block in float32 11 KB

// Weights are read once, in order. Asking for their lines a few kilobytes early, into the second-level cache, gives
// 1.5 times the rate from memory and 2 times from the third-level cache (lab log).
template <size_t LINES>
SIMD_INLINE void ahead(const uint8_t* p) {
    for (size_t i = 0; i < LINES; ++i) __builtin_prefetch(p + AHEAD + i * 64, 0, 2);
}

// What a tile multiplies: `data` of its first block, the next one `block_bytes` behind it; rows from `row` on.
struct Operands {
    const uint8_t* data;
    size_t block_bytes, superblocks;
    const Activations& x;
    size_t row;
    bool fresh;           // the weights come from memory: ask ahead
    bool spread = false;  // nibbles in the layout of int8, see `spread`
};

template <bool SPREAD, size_t R, size_t B>
SIMD_INLINE void tile_int8(const Operands& o, Float (&sums)[R][B]) {
    constexpr auto ready = [](Line line) {
        if constexpr (SPREAD)
            return line;
        else
            return bytes_of(line);
    };
    const size_t groups = o.x.stride / GROUP;
    const uint8_t* data = o.data;
    for (size_t s = 0; s < o.superblocks; ++s, data += 64 + SUPERBLOCK * LANES) {
        for (size_t half = 0; half < 2; ++half) {
            const size_t at = o.row * groups + s * 2 + half;
            if (o.fresh)
                for (size_t b = 0; b < B; ++b)
                    half ? ahead<8>(data + b * o.block_bytes + 9 * 64) : ahead<9>(data + b * o.block_bytes);
            Int dots[R][B];
            for (size_t r = 0; r < R; ++r) {
                const int32_t start = o.x.sums[at + r * groups];
                for (Int& dot : dots[r]) dot = SPREAD ? all_int(start) : bytes_start(start);
            }
            const uint8_t* lines = data + 64 + half * 512;
            const int8_t* q = o.x.q + o.row * o.x.stride + s * SUPERBLOCK + half * GROUP;
            for (size_t i = 0; i < 8; ++i) {
                decltype(ready(Line{})) line[B];
                for (size_t b = 0; b < B; ++b) line[b] = ready(load_line(lines + b * o.block_bytes + i * 64));
                for (size_t r = 0; r < R; ++r) dots_of<B>(dots[r], line, q + r * o.x.stride + i * 4);
            }
            for (size_t b = 0; b < B; ++b) {
                const uint8_t* scales = data + b * o.block_bytes + half * 32;
                const Float scale = load_half(reinterpret_cast<const uint16_t*>(scales));
                for (size_t r = 0; r < R; ++r) {
                    const Float both = mul(scale, all(o.x.scales[at + r * groups]));
                    sums[r][b] = fma(to_float(dots[r][b]), both, sums[r][b]);
                }
            }
        }
    }
}

template <size_t R, size_t B>
SIMD_INLINE void tile_int4(const Operands& o, Float (&sums)[R][B]) {
    static_assert(B == 1);  // for more rows nibbles are spread out once, see `spread`
    const size_t groups = o.x.stride / GROUP;
    const uint8_t* data = o.data;
    for (size_t s = 0; s < o.superblocks; ++s, data += 64 + SUPERBLOCK * LANES / 2) {
        const size_t at = o.row * groups + s * 2;
        Int low[R], high[R];
        for (size_t r = 0; r < R; ++r) {
            low[r] = all_int(o.x.sums[at + r * groups]);
            high[r] = all_int(o.x.sums[at + r * groups + 1]);
        }
        const int8_t* q = o.x.q + o.row * o.x.stride + s * SUPERBLOCK;
        if (o.fresh) ahead<9>(data);
        for (size_t i = 0; i < 8; ++i) {
            const Line both = load_line(data + 64 + i * 64);
            const Line first = low_nibbles(both), second = high_nibbles(both);
            for (size_t r = 0; r < R; ++r) {
                low[r] = dot4(low[r], first, q + r * o.x.stride + i * 4);
                high[r] = dot4(high[r], second, q + r * o.x.stride + GROUP + i * 4);
            }
        }
        const Float scale0 = load_half(reinterpret_cast<const uint16_t*>(data));
        const Float scale1 = load_half(reinterpret_cast<const uint16_t*>(data) + 16);
        for (size_t r = 0; r < R; ++r) {
            const float* scales = o.x.scales + at + r * groups;
            sums[r][0] = fma(to_float(low[r]), mul(scale0, all(scales[0])), sums[r][0]);
            sums[r][0] = fma(to_float(high[r]), mul(scale1, all(scales[1])), sums[r][0]);
        }
    }
}

// Two columns of weights.
struct Columns {
    Float even, odd;
};
template <Format F>
SIMD_INLINE Columns columns_at(const uint8_t* data) {
    if constexpr (F == BF16) {
        const Line line = load_line(data);
        return {even_bf16(line), odd_bf16(line)};
    } else {
        const float* lines = reinterpret_cast<const float*>(data);
        return {load(lines), load(lines + LANES)};
    }
}

template <Format F, bool EVEN, bool ODD, size_t R, size_t B>
SIMD_INLINE void pass_over(const Operands& o, size_t first, size_t last, Float (&even)[R][B], Float (&odd)[R][B]) {
    constexpr size_t size = F == BF16 ? 2 : 4;  // of a weight, in bytes
    for (size_t k = first; k < last; k += 2) {
        for (size_t b = 0; b < B; ++b) {
            const uint8_t* data = o.data + b * o.block_bytes + k * LANES * size;
            if (EVEN && o.fresh && k % (32 / size) == 0) ahead<8>(data);
            const Columns w = columns_at<F>(data);
            for (size_t r = 0; r < R; ++r) {
                const float* x = o.x.f32 + (o.row + r) * o.x.stride + k;
                if constexpr (EVEN) even[r][b] = fma(w.even, all(x[0]), even[r][b]);
                if constexpr (ODD) odd[r][b] = fma(w.odd, all(x[1]), odd[r][b]);
            }
        }
    }
}

// bfloat16 weights are widened and multiplied with float32 activations: on the machines measured VDPBF16PS has a third
// of that rate, and less precision. Even and odd columns have sums of their own. Where registers don't hold both they
// take turns at stretches of columns, which the first-level cache keeps from one to the other: sums that go to memory
// and back for each product cost two thirds of the rate (lab log).
template <Format F, size_t R, size_t B>
SIMD_INLINE void tile_float(const Operands& o, Float (&sums)[R][B]) {
    const size_t columns = o.superblocks * SUPERBLOCK;
    Float other[R][B];
    for (auto& row : other)
        for (Float& sum : row) sum = all(0.f);
    if constexpr (2 * R * B <= SUMS) {
        pass_over<F, true, true>(o, 0, columns, sums, other);
    } else {
        for (size_t k = 0; k < columns; k += STRETCH) {
            const size_t end = std::min(k + STRETCH, columns);
            pass_over<F, true, false>(o, k, end, sums, other);
            pass_over<F, false, true>(o, k, end, sums, other);
        }
    }
    for (size_t r = 0; r < R; ++r)
        for (size_t b = 0; b < B; ++b) sums[r][b] = fma(all(1.f), other[r][b], sums[r][b]);
}

// R rows times B blocks into y, whose rows are `stride` apart.
template <size_t R, size_t B>
static void tile(Format format, const Operands& o, float* y, size_t stride, bool add, const float* bias) {
    Float sums[R][B];
    for (auto& row : sums)
        for (Float& sum : row) sum = all(0.f);
    switch (format) {
        case INT8: o.spread ? tile_int8<true>(o, sums) : tile_int8<false>(o, sums); break;
        case INT4:
            if constexpr (B == 1) tile_int4<R, B>(o, sums);
            break;
        case BF16: tile_float<BF16>(o, sums); break;
        default: tile_float<F32>(o, sums); break;
    }
    for (size_t r = 0; r < R; ++r)
        for (size_t b = 0; b < B; ++b) {
            float* to = y + r * stride + b * LANES;
            Float value = sums[r][b];
            if (bias) value = fma(all(1.f), load(bias + b * LANES), value);
            if (add) value = fma(all(1.f), load(to), value);
            store(to, value);
        }
}

template <size_t B>
static void some_rows(size_t rows, Format format, const Operands& o, float* y, size_t stride, bool add,
                      const float* bias) {
    switch (rows) {
        case 8: return tile<8, B>(format, o, y, stride, add, bias);
        case 7: return tile<7, B>(format, o, y, stride, add, bias);
        case 6: return tile<6, B>(format, o, y, stride, add, bias);
        case 5: return tile<5, B>(format, o, y, stride, add, bias);
        case 4: return tile<4, B>(format, o, y, stride, add, bias);
        case 3: return tile<3, B>(format, o, y, stride, add, bias);
        case 2: return tile<2, B>(format, o, y, stride, add, bias);
        default: return tile<1, B>(format, o, y, stride, add, bias);
    }
}

// A block of int4 weights with each number in a byte of its own, in the layout of int8 (its offset stays 8).
static void spread(const uint8_t* from, size_t superblocks, uint8_t* to) {
    for (size_t s = 0; s < superblocks; ++s, from += 64 + SUPERBLOCK * LANES / 2, to += 64 + SUPERBLOCK * LANES) {
        std::memcpy(to, from, 64);
        ahead<9>(from);
        for (size_t i = 0; i < 8; ++i) {
            const Line both = load_line(from + 64 + i * 64);
            store_line(to + 64 + i * 64, low_nibbles(both));
            store_line(to + 64 + (i + 8) * 64, high_nibbles(both));
        }
    }
}

static void matmul(const Matrix& w, const Activations& x, size_t rows, float* y, size_t y_stride, bool add,
                   size_t first, size_t last) {
    const size_t block_bytes = w.block_bytes(), count = w.superblocks();
    const bool whole = w.format == INT8 || w.format == INT4;
    const size_t tall = whole ? WHOLE_TALL : TALL;
    if (rows <= FEW) {
        // With thirty-two large registers they share one pass, else even shares of them have one each.
        const size_t passes = SIDE > 1 ? 1 : (rows + tall - 1) / tall;
        for (size_t block = first; rows && block < last; ++block) {
            Operands o{w.data + block * block_bytes, block_bytes, count, x, 0, true};
            for (size_t pass = 1; pass <= passes; ++pass, o.fresh = false) {
                const size_t end = rows * pass / passes;
                some_rows<1>(end - o.row, w.format, o, y + o.row * y_stride + block * LANES, y_stride, add,
                             w.bias ? w.bias + block * LANES : nullptr);
                o.row = end;
            }
        }
        return;
    }
    const size_t panel = std::max(tall, PANEL / (x.stride * (whole ? 1 : 4)) / tall * tall);
    thread_local std::vector<uint8_t> bytes;
    const size_t spread_bytes = count * superblock_bytes(INT8);
    if (w.format == INT4 && bytes.size() < SIDE * spread_bytes) bytes.resize(SIDE * spread_bytes);
    for (size_t begin = 0; begin < rows; begin += panel) {
        const size_t end = std::min(begin + panel, rows);
        for (size_t block = first; block < last; block += SIDE) {
            const size_t blocks = std::min(SIDE, last - block);
            Operands o{w.data + block * block_bytes, block_bytes, count, x, begin, begin == 0};
            Format format = w.format;
            if (format == INT4) {
                for (size_t b = 0; b < blocks; ++b)
                    spread(o.data + b * block_bytes, count, bytes.data() + b * spread_bytes);
                o.data = bytes.data(), o.block_bytes = spread_bytes, o.fresh = false, o.spread = true, format = INT8;
            }
            for (; o.row < end; o.row += tall, o.fresh = false) {
                const size_t here = std::min(tall, end - o.row);
                float* to = y + o.row * y_stride + block * LANES;
                const float* bias = w.bias ? w.bias + block * LANES : nullptr;
                if (blocks == SIDE)
                    some_rows<SIDE>(here, format, o, to, y_stride, add, bias);
                else
                    some_rows<1>(here, format, o, to, y_stride, add, bias);
            }
        }
    }
}

}  // namespace ayllu::LEVEL
