// The kernels of training.cpp, flash.cpp and sampling.cpp. All matrices are row-major and contiguous; uint16_t holds
// bfloat16.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ayllu {

struct Kernels;  // of a machine level (kernel_table.h)

struct Heads {
    size_t batches, length, heads, kv_heads, dim;
    float eps, query_scale;
};

// Activations are T: uint16_t (bfloat16) or float.
template <class T>
struct Training {
    // logits (rows, vocab) become d loss / d logits for loss = sum(weights * -log p[target]).
    static void cross_entropy(T* logits, const int64_t* targets, const float* weights, float* losses, float* entropies,
                       size_t rows, size_t vocab);

    static void rms_norm(const T* x, const float* w, T* y, float* scales, float eps, size_t rows, size_t width);
    static void rms_norm_backward(const T* dy, const T* x, const float* w, const float* scales, T* dx,
                           float* dw, size_t rows, size_t width);

    static void swiglu(const T* gate_up, T* y, size_t rows, size_t hidden);
    static void swiglu_backward(const T* dy, const T* gate_up, T* d, size_t rows, size_t hidden);

    // q (B,H,T,D), k and v (B,G,T,D) as split_heads makes them -> y (B,T,H,D) and log_sums (B,H,T), which the way
    // back asks for. A token at t of a row sees starts[row, t] .. t, the part of its document so far.
    static void attention(const Kernels& level, const Heads& h, const T* q, const T* k, const T* v,
                          const int32_t* starts, T* y, float* log_sums);
    static void attention_backward(const Kernels& level, const Heads& h, const T* dy, const T* q, const T* k,
                                   const T* v, const int32_t* starts, float* log_sums, T* dq, T* dk, T* dv);

    // qkv (B*T, (H+2G)*D) -> q (B,H,T,D) times query_scale, k and v (B,G,T,D). Null weights: no norm.
    static void split_heads(const Heads& h, const T* qkv, const float* q_weight, const float* k_weight,
                     const float* cosine, const float* sine, T* q, T* k, T* v, float* scales);
    // d_weights: the queries' norm weights, then the keys'.
    static void split_heads_backward(const Heads& h, const T* dq, const T* dk, const T* dv,
                              const T* qkv, const float* q_weight, const float* k_weight, const float* cosine,
                              const float* sine, const float* scales, T* d, float* d_weights);
};

// Next tokens from logits (rows, vocab): greedy at temperature 0 (lowest id among equals), else by the
// inverse of the cumulative distribution at uniforms[row]. logprobs: of the token at temperature 1.
void sample(const float* logits, const float* temperatures, const double* uniforms, int64_t* tokens, float* logprobs,
            size_t rows, size_t vocab);

}  // namespace ayllu
