// What a machine level offers: one table of functions, chosen once at run time.
#pragma once

#include "packed.h"

namespace ayllu {

constexpr size_t CACHE_TOKENS = 16;  // tokens in a block of the cache
constexpr size_t MOST_ROWS = 8;      // (query head, token) pairs that one pass over cached keys serves

// One head of one layer in one block of the cache. Keys lie transposed, tokens side by side, so that scores of
// sixteen tokens are one register; values lie token by token. Types: F32, BF16, or INT8 with a scale per token:
//   keys    f32, bf16: (dim, 16)            int8: (dim/4, 16, 4), then 16 float scales
//   values  f32, bf16: (16, dim)            int8: (16, dim), then 16 float scales
// `dim` is a multiple of 16 (padded with zeros).
inline size_t head_bytes(Format type, size_t dim) {
    const size_t element = type == F32 ? 4 : type == BF16 ? 2 : 1;
    return CACHE_TOKENS * dim * element + (type == INT8 ? CACHE_TOKENS * 4 : 0);
}

// Attention of up to MOST_ROWS query rows that share a key-value head.
struct AttentionRows {
    Format type;
    size_t dim, rows;
    const float* query[MOST_ROWS];  // dim values, already scaled
    size_t first[MOST_ROWS];        // visible positions: first <= position < last
    size_t last[MOST_ROWS];
    float* out[MOST_ROWS];          // dim values
    const uint8_t* const* blocks;   // keys of block b at blocks[b], its values right behind
    float* scratch;                 // rows * (positions rounded up to 16)
};

constexpr size_t FLASH_QUERIES = 24;  // of a document that look at their keys together

// One query head over one row of tokens, for training. Panels are float32, (length, dim) unless said otherwise, `dim`
// padded with zeros to a multiple of 16. A query at t sees starts[t] .. t.
struct FlashRow {
    size_t length, dim, turned_row;
    const int32_t* starts;
    const float *q, *k, *v;  // q already scaled
    const float *k_turned, *v_turned;  // (dim, turned_row); turned_row >= length + 16, whatever is behind length
    const float* dy;
    float *y, *log_sums;     // log_sums (length): of a query's exponentials
    float *dq, *dk, *dv;     // dk and dv are added to
    float* scratch;          // 2 * FLASH_QUERIES * turned_row
};

struct Kernels {
    const char* name;
    // y[r * y_stride + n] (+)= sum over k of x[r, k] * w[n, k], for the row blocks first..last of w; y is padded to
    // whole blocks of 16. `add`: y is added to, else overwritten.
    void (*matmul)(const Matrix& w, const Activations& x, size_t rows, float* y, size_t y_stride, bool add,
                   size_t first, size_t last);
    // x (columns) -> q, scales, sums of its groups; zero above `columns` up to the padded width. `offset`: 128 or 8.
    void (*quantise)(const float* x, size_t columns, int8_t* q, float* scales, int32_t* sums, int offset);
    void (*attend)(const AttentionRows& rows);
    // y = x / sqrt(mean(x^2) + eps) * w
    void (*rms_norm)(const float* x, const float* w, float* y, size_t width, float eps);
    // gate = silu(gate) * up
    void (*swiglu)(const float* gate, const float* up, float* y, size_t width);
    // y and log_sums; dq, dk and dv from dy and log_sums.
    void (*flash_forward)(const FlashRow& row);
    void (*flash_backward)(const FlashRow& row);
};

const Kernels& kernels();                  // the best that this machine runs
const Kernels* kernels_of(const char* name);  // by name, or null where this machine can't run them
const Kernels& kernels_at(const char* name);  // by name, "" being the best; std::runtime_error instead of null

}  // namespace ayllu
