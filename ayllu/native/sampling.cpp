// Sampling: from logits to the next tokens.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "scalar.h"

namespace ayllu {

CLONES static void sample_rows(const float* logits, const float* temperatures, const double* uniforms,
                               int64_t* tokens, float* logprobs, float* buffer, size_t first, size_t last,
                               size_t vocab) {
    constexpr size_t BLOCK = 64;
    for (size_t row = first; row < last; ++row) {
        const float* l = logits + row * vocab;
        const float top = largest(l, vocab);
        float sum = 0.f;
        for (size_t i = 0; i < vocab; ++i) sum += buffer[i] = exp_fast(l[i] - top);
        size_t token = 0;
        if (temperatures[row] <= 0.f) {
            while (l[token] < top) ++token;  // the lowest id among equals
        } else {
            if (temperatures[row] != 1.f) {
                const float inverse = 1.f / temperatures[row];
                for (size_t i = 0; i < vocab; ++i) buffer[i] = exp_fast((l[i] - top) * inverse);
            }
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
            size_t likely = token;  // where rounding leaves nothing behind, the block's likeliest
            for (; token < end; ++token) {
                if (buffer[token] > buffer[likely]) likely = token;
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
