// Packed matrices: the layouts that the products of the decode step stream through.
//
// Sixteen output rows are woven together, so that one activation, broadcast, feeds sixteen rows and no sum ever runs
// across lanes. Columns go in superblocks of 64, two groups of 32 with a scale a row each:
//
//   int8  64 bytes of half-precision scales (16 rows of group 0, then of group 1), then 16 lines of 64 bytes; line i
//         holds the columns 4i..4i+3 of the 16 rows, as q + 128                        1,088 bytes, 8.5 bits a weight
//   int4  the scales, then 8 lines: line i has the columns 4i..4i+3 of group 0 in its low nibbles and those of group
//         1 in its high ones, as q + 8                                                   576 bytes, 4.5 bits a weight
//   bf16  line i holds the columns 2i and 2i+1 of the 16 rows
//   f32   line i holds column i
//
// That is VPDPBUSD's operand order. Rows are padded to 16 and columns to 64 with zeros, every line
// lies on a 64-byte border, and the bytes in memory are the bytes on disk.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ayllu {

enum Format : int { F32 = 0, BF16 = 1, INT8 = 2, INT4 = 3 };

constexpr size_t LANES = 16;       // rows woven together
constexpr size_t SUPERBLOCK = 64;  // columns
constexpr size_t GROUP = 32;       // columns with one scale

inline size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

inline size_t superblock_bytes(Format format) {
    switch (format) {
        case F32: return SUPERBLOCK * LANES * 4;
        case BF16: return SUPERBLOCK * LANES * 2;
        case INT8: return 64 + SUPERBLOCK * LANES;
        default: return 64 + SUPERBLOCK * LANES / 2;
    }
}

struct Matrix {
    const uint8_t* data = nullptr;
    const float* bias = nullptr;
    size_t rows = 0, columns = 0;
    Format format = F32;

    size_t blocks() const { return (rows + LANES - 1) / LANES; }
    size_t superblocks() const { return (columns + SUPERBLOCK - 1) / SUPERBLOCK; }
    size_t block_bytes() const { return superblocks() * superblock_bytes(format); }
    size_t bytes() const { return blocks() * block_bytes(); }
};

// Activations of some rows of `stride` columns (padded): float32, and for the whole-number formats quantised,
// q = round(x / scale) in -127..127 per group of 32, and `sums`, the sum of q over each group times -128 or -8 (what
// the weights' offset adds to every product, taken back by starting from it; AVX2 takes the 128 off the weights).
struct Activations {
    const float* f32 = nullptr;
    const int8_t* q = nullptr;
    const float* scales = nullptr;
    const int32_t* sums = nullptr;
    size_t stride = 0;
};

// From row-major float32 or bfloat16 (rows, columns) to `format`; out has Matrix::bytes(). int4 searches the scale of
// each group for the least squared error.
void pack(const void* weights, bool from_bf16, size_t rows, size_t columns, Format format, uint8_t* out);
// One row back as float32 (`columns` values), the embedding of a token.
void unpack_row(const Matrix& matrix, size_t row, float* out);
// half-precision blocks of llama.cpp, taken over without a rounding: Q8_0 to int8, Q4_0 to int4.
void pack_blocks(const uint8_t* blocks, size_t rows, size_t columns, Format format, uint8_t* out);

float half_to_float(uint16_t h);
uint16_t float_to_half(float x);

}  // namespace ayllu
