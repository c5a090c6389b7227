// Attention for training, forward and backward, over a whole row of tokens at a time. Included by compute.h only.
//
// Scores never leave the cache: a few queries look at the keys that they may see, and what is needed of that later is
// one number a query (FlashAttention: Dao et al. 2022, arXiv 2205.14135; the backward pass works scores out again). A
// block of queries never reaches over the border of a document, so that packed rows cost what their documents cost.
// Unlike there, a block has the scores of all of its keys at once: they fit the second-level cache up to some
// thousand tokens, and nothing has to be scaled again when a larger one turns up.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernel_table.h"
#include "scalar.h"
#include "simd.h"

namespace ayllu::LEVEL {

// c (m, n) = or += a (m, k) b (k, n); n is a multiple of 16, b's and c's rows are contiguous.
struct Product {
    size_t m, n, k;
    const float* a;
    size_t a_row, a_column;
    const float* b;
    size_t b_row;
    float* c;
    size_t c_row;
    bool add;
};

template <size_t R, size_t S>
SIMD_INLINE void product_tile(const Product& p, size_t row, size_t column) {
    const float *a = p.a + row * p.a_row, *b = p.b + column;
    float* c = p.c + row * p.c_row + column;
    Float sums[R][S];
    for (size_t r = 0; r < R; ++r)
        for (size_t s = 0; s < S; ++s) sums[r][s] = p.add ? load(c + r * p.c_row + s * LANES) : all(0.f);
    for (size_t k = 0; k < p.k; ++k, a += p.a_column, b += p.b_row) {
        Float right[S];
        for (size_t s = 0; s < S; ++s) right[s] = load(b + s * LANES);
        for (size_t r = 0; r < R; ++r) {
            const Float left = all(a[r * p.a_row]);
            for (size_t s = 0; s < S; ++s) sums[r][s] = fma(left, right[s], sums[r][s]);
        }
    }
    for (size_t r = 0; r < R; ++r)
        for (size_t s = 0; s < S; ++s) store(c + r * p.c_row + s * LANES, sums[r][s]);
}

template <size_t S>
SIMD_INLINE void product_columns(const Product& p, size_t column) {
    size_t row = 0;
    for (; row + TALL <= p.m; row += TALL) product_tile<TALL, S>(p, row, column);
    switch (p.m - row) {
        case 5: return product_tile<5, S>(p, row, column);
        case 4: return product_tile<4, S>(p, row, column);
        case 3: return product_tile<3, S>(p, row, column);
        case 2: return product_tile<2, S>(p, row, column);
        case 1: return product_tile<1, S>(p, row, column);
        default: return;
    }
}

static void product(const Product& p) {
    size_t column = 0;
    for (; column + SIDE * LANES <= p.n; column += SIDE * LANES) product_columns<SIDE>(p, column);
    for (; column < p.n; column += LANES) product_columns<1>(p, column);
}

// Queries first .. last of one document, and the keys from `start` on that they see.
struct Look {
    size_t first, last, start;
    size_t queries() const { return last - first; }
    size_t keys() const { return last - start; }
    size_t columns() const { return round_up(keys(), LANES); }  // of a row of scores
    size_t seen(size_t query) const { return first + query + 1 - start; }
};

template <class Body>
SIMD_INLINE void each_look(const FlashRow& f, const Body& body) {
    for (size_t first = 0; first < f.length;) {
        Look look{first, first + 1, size_t(f.starts[first])};
        while (look.last < f.length && look.queries() < FLASH_QUERIES && f.starts[look.last] == f.starts[first])
            ++look.last;
        body(look);
        first = look.last;
    }
}

SIMD_INLINE void scores_of_look(const FlashRow& f, const Look& look, float* scores) {
    product({look.queries(), look.columns(), f.dim, f.q + look.first * f.dim, f.dim, 1, f.k_turned + look.start,
             f.turned_row, scores, look.columns(), false});
}

// Of a row of scores, with zeros behind those that are seen.
SIMD_INLINE float sum_of(const float* x, size_t columns) {
    float lanes[LANES] = {};
    for (size_t at = 0; at < columns; at += LANES)
        for (size_t i = 0; i < LANES; ++i) lanes[i] += x[at + i];
    for (size_t half = LANES / 2; half; half /= 2)
        for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

static void flash_forward(const FlashRow& f) {
    each_look(f, [&](const Look& look) {
        float* scores = f.scratch;
        scores_of_look(f, look, scores);
        float inverse[FLASH_QUERIES];
        for (size_t i = 0; i < look.queries(); ++i) {
            float* s = scores + i * look.columns();
            const size_t seen = look.seen(i);
            const float top = largest(s, seen);
            for (size_t j = 0; j < seen; ++j) s[j] = exp_fast(s[j] - top);
            std::fill(s + seen, s + look.columns(), 0.f);
            const float sum = sum_of(s, look.columns());
            inverse[i] = 1.f / sum;
            f.log_sums[look.first + i] = top + std::log(sum);
        }
        product({look.queries(), f.dim, look.keys(), scores, look.columns(), 1, f.v + look.start * f.dim, f.dim,
                 f.y + look.first * f.dim, f.dim, false});
        for (size_t i = 0; i < look.queries(); ++i)
            for (size_t d = 0; d < f.dim; ++d) f.y[(look.first + i) * f.dim + d] *= inverse[i];
    });
}

// With p the weights and dp = dy v^T: dv += p^T dy, ds = p (dp - sum(p dp)), dq = ds k, dk += ds^T q.
static void flash_backward(const FlashRow& f) {
    each_look(f, [&](const Look& look) {
        const size_t queries = look.queries(), columns = look.columns(), keys = look.keys();
        float *weights = f.scratch, *d_scores = weights + queries * columns;
        const float *q = f.q + look.first * f.dim, *dy = f.dy + look.first * f.dim;
        scores_of_look(f, look, weights);
        product({queries, columns, f.dim, dy, f.dim, 1, f.v_turned + look.start, f.turned_row, d_scores, columns,
                 false});
        for (size_t i = 0; i < queries; ++i) {
            float *p = weights + i * columns, *d = d_scores + i * columns;
            const size_t seen = look.seen(i);
            const float log_sum = f.log_sums[look.first + i];
            for (size_t j = 0; j < seen; ++j) p[j] = exp_fast(p[j] - log_sum);
            std::fill(p + seen, p + columns, 0.f);
            std::fill(d + seen, d + columns, 0.f);
            for (size_t j = 0; j < seen; ++j) d[j] *= p[j];
            const float dot = sum_of(d, columns);
            for (size_t j = 0; j < seen; ++j) d[j] -= p[j] * dot;
        }
        product({keys, f.dim, queries, weights, 1, columns, dy, f.dim, f.dv + look.start * f.dim, f.dim, true});
        product({queries, f.dim, keys, d_scores, columns, 1, f.k + look.start * f.dim, f.dim,
                 f.dq + look.first * f.dim, f.dim, false});
        product({keys, f.dim, queries, d_scores, 1, columns, q, f.dim, f.dk + look.start * f.dim, f.dim, true});
    });
}

}  // namespace ayllu::LEVEL
