// Kernels of the decode step: attention over the slot cache, and sampling.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "scalar.h"

namespace ayllu {

INLINE void store(float& to, float x) { to = x; }
INLINE void store(uint16_t& to, float x) { to = narrow(x); }

// Keys are stored as (dim, capacity), so that scores of neighbouring positions are computed side by
// side; values as (capacity, dim), so that their weighted sum is.
template <class T>
INLINE void attend_slot(const Decode& a, const T* q, const T* k_new, const T* v_new, T* keys, T* values, size_t at,
                        T* out, float* scores) {
    const size_t dim = a.dim, capacity = a.capacity, end = at + 1, group = a.heads / a.kv_heads;
    float sum_row[256];
    for (size_t g = 0; g < a.kv_heads; ++g) {
        T* k = keys + g * dim * capacity;
        T* v = values + g * capacity * dim;
        for (size_t d = 0; d < dim; ++d) k[d * capacity + at] = k_new[g * dim + d];
        std::memcpy(v + at * dim, v_new + g * dim, dim * sizeof(T));
        for (size_t head = g * group; head < (g + 1) * group; ++head) {
            const T* query = q + head * dim;
            for (size_t t = 0; t < end; ++t) scores[t] = 0.f;
            for (size_t d = 0; d < dim; ++d) {
                const float factor = value(query[d]) * a.scale;
                const T* row = k + d * capacity;
                for (size_t t = 0; t < end; ++t) scores[t] += factor * value(row[t]);
            }
            const float top = largest(scores, end);
            float sum = 0.f;
            for (size_t t = 0; t < end; ++t) {
                scores[t] = exp_fast(scores[t] - top);
                sum += scores[t];
            }
            for (size_t d = 0; d < dim; ++d) sum_row[d] = 0.f;
            for (size_t t = 0; t < end; ++t) {
                const float weight = scores[t];
                const T* row = v + t * dim;
                for (size_t d = 0; d < dim; ++d) sum_row[d] += weight * value(row[d]);
            }
            for (size_t d = 0; d < dim; ++d) store(out[head * dim + d], sum_row[d] / sum);
        }
    }
}

CLONES static void attend_f32(const Decode& a, const float* q, const float* k_new, const float* v_new, float* keys,
                              float* values, const int64_t* lengths, float* out, float* scores, size_t first,
                              size_t last) {
    const size_t slot = a.kv_heads * a.dim * a.capacity, step = a.kv_heads * a.dim;
    for (size_t b = first; b < last; ++b)
        attend_slot(a, q + b * a.heads * a.dim, k_new + b * step, v_new + b * step, keys + b * slot,
                    values + b * slot, size_t(lengths[b]), out + b * a.heads * a.dim, scores);
}

CLONES static void attend_bf16(const Decode& a, const uint16_t* q, const uint16_t* k_new, const uint16_t* v_new,
                               uint16_t* keys, uint16_t* values, const int64_t* lengths, uint16_t* out, float* scores,
                               size_t first, size_t last) {
    const size_t slot = a.kv_heads * a.dim * a.capacity, step = a.kv_heads * a.dim;
    for (size_t b = first; b < last; ++b)
        attend_slot(a, q + b * a.heads * a.dim, k_new + b * step, v_new + b * step, keys + b * slot,
                    values + b * slot, size_t(lengths[b]), out + b * a.heads * a.dim, scores);
}

void decode_attention(const Decode& a, const void* q, const void* k_new, const void* v_new, void* keys, void* values,
                      const int64_t* lengths, void* out) {
    parallel_rows(
        a.slots,
        [&](size_t first, size_t last, int) {
            std::vector<float> scores(a.capacity);
            if (a.bf16)
                attend_bf16(a, static_cast<const uint16_t*>(q), static_cast<const uint16_t*>(k_new),
                            static_cast<const uint16_t*>(v_new), static_cast<uint16_t*>(keys),
                            static_cast<uint16_t*>(values), lengths, static_cast<uint16_t*>(out), scores.data(),
                            first, last);
            else
                attend_f32(a, static_cast<const float*>(q), static_cast<const float*>(k_new),
                           static_cast<const float*>(v_new), static_cast<float*>(keys), static_cast<float*>(values),
                           lengths, static_cast<float*>(out), scores.data(), first, last);
        },
        2);
}

CLONES static void sample_rows(const float* logits, const float* temperatures, const double* uniforms,
                               int64_t* tokens, float* logprobs, float* buffer, size_t first, size_t last,
                               size_t vocab) {
    constexpr size_t BLOCK = 64;
    for (size_t row = first; row < last; ++row) {
        const float* l = logits + row * vocab;
        const float top = largest(l, vocab);
        float sum = 0.f;
        for (size_t i = 0; i < vocab; ++i) sum += exp_fast(l[i] - top);
        size_t token = 0;
        if (temperatures[row] <= 0.f) {
            while (l[token] < top) ++token;  // the lowest id among equals
        } else {
            const float inverse = 1.f / temperatures[row];
            for (size_t i = 0; i < vocab; ++i) buffer[i] = exp_fast((l[i] - top) * inverse);
            double total = 0.0;
            std::vector<double> upto;  // cumulated mass at the end of each block
            upto.reserve(vocab / BLOCK + 1);
            for (size_t at = 0; at < vocab; at += BLOCK) {
                float mass = 0.f;
                for (size_t i = at; i < std::min(at + BLOCK, vocab); ++i) mass += buffer[i];
                upto.push_back(total += mass);
            }
            const double wanted = uniforms[row] * total;
            size_t block = size_t(std::upper_bound(upto.begin(), upto.end(), wanted) - upto.begin());
            block = std::min(block, upto.size() - 1);
            double mass = block ? upto[block - 1] : 0.0;
            const size_t end = std::min((block + 1) * BLOCK, vocab);
            token = block * BLOCK;
            size_t likely = token;  // where rounding leaves nothing behind, the block's last real chance
            for (; token < end; ++token) {
                if (buffer[token] > 0.f) likely = token;
                if ((mass += buffer[token]) > wanted) break;
            }
            if (token == end) token = likely;
        }
        tokens[row] = int64_t(token);
        logprobs[row] = l[token] - top - std::log(sum);
    }
}

void sample(const float* logits, const float* temperatures, const double* uniforms, int64_t* tokens, float* logprobs,
            size_t rows, size_t vocab) {
    parallel_rows(
        rows,
        [&](size_t first, size_t last, int) {
            std::vector<float> buffer(vocab);
            sample_rows(logits, temperatures, uniforms, tokens, logprobs, buffer.data(), first, last, vocab);
        },
        8);
}

}  // namespace ayllu
