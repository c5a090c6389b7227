// The kernels of training.cpp and sampling.cpp. All matrices are row-major and contiguous; uint16_t holds bfloat16.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ayllu {

struct Heads {
    size_t batches, length, heads, kv_heads, dim;
    float eps, query_scale;
};

// logits (rows, vocab) become d loss / d logits for loss = sum(weights * -log p[target]).
void cross_entropy(uint16_t* logits, const int64_t* targets, const float* weights, float* losses, float* entropies,
                   size_t rows, size_t vocab);

void rms_norm(const uint16_t* x, const float* w, uint16_t* y, float* scales, float eps, size_t rows, size_t width);
void rms_norm_backward(const uint16_t* dy, const uint16_t* x, const float* w, const float* scales, uint16_t* dx,
                       float* dw, size_t rows, size_t width);

void swiglu(const uint16_t* gate_up, uint16_t* y, size_t rows, size_t hidden);
void swiglu_backward(const uint16_t* dy, const uint16_t* gate_up, uint16_t* d, size_t rows, size_t hidden);

// scores (batches, heads, length, length); starts (batches, length).
void causal_softmax(uint16_t* scores, const int32_t* starts, size_t batches, size_t heads, size_t length);
void causal_softmax_backward(uint16_t* dp, const uint16_t* p, const int32_t* starts, size_t batches, size_t heads,
                             size_t length);

// qkv (B*T, (H+2G)*D) -> q (B,H,T,D) times query_scale, k and v (B,G,T,D). Null weights: no norm.
void split_heads(const Heads& h, const uint16_t* qkv, const float* q_weight, const float* k_weight,
                 const float* cosine, const float* sine, uint16_t* q, uint16_t* k, uint16_t* v, float* scales);
// d_weights: the queries' norm weights, then the keys'.
void split_heads_backward(const Heads& h, const uint16_t* dq, const uint16_t* dk, const uint16_t* dv,
                          const uint16_t* qkv, const float* q_weight, const float* k_weight, const float* cosine,
                          const float* sine, const float* scales, uint16_t* d, float* d_weights);

// Next tokens from logits (rows, vocab): greedy at temperature 0 (lowest id among equals), else by the
// inverse of the cumulative distribution at uniforms[row]. logprobs: of the token at temperature 1.
void sample(const float* logits, const float* temperatures, const double* uniforms, int64_t* tokens, float* logprobs,
            size_t rows, size_t vocab);

}  // namespace ayllu
