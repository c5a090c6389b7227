// Fused training kernels for the CPU, on bfloat16 or float32 activations (T) with float32 arithmetic inside.
//
// A small decoder on a CPU spends most of its time outside the matrix products: in softmax, norms and
// casts that PyTorch runs as separate passes over memory. Each kernel here is one such group in one
// pass. Matrix products stay with PyTorch, but for those of attention (flash.cpp).
//
// Rows are split evenly over the threads of PyTorch's own OpenMP pool (see parallel.h), sums over
// rows are added in thread order: the same input and thread count give the same bits.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "scalar.h"

namespace ayllu {

// ---- cross-entropy: logits become their own gradient
template <class T>
CLONES static void cross_entropy_rows(T* logits, const int64_t* targets, const float* weights, float* losses,
                                      float* entropies, float* buffer, size_t first, size_t last, size_t vocab) {
    for (size_t row = first; row < last; ++row) {
        T* l = logits + row * vocab;
        const float top = largest(l, vocab);
        float sum = 0.f, weighted = 0.f;
        for (size_t i = 0; i < vocab; ++i) {
            const float shifted = widen(l[i]) - top;
            const float e = exp_fast(shifted);
            buffer[i] = e;
            sum += e;
            weighted += e * shifted;
        }
        const int64_t target = targets[row];
        const float log_sum = std::log(sum);
        losses[row] = log_sum + top - widen(l[target]);
        entropies[row] = log_sum - weighted / sum;
        const float scale = weights[row] / sum;
        for (size_t i = 0; i < vocab; ++i) put(l[i], buffer[i] * scale);
        put(l[target], buffer[target] * scale - weights[row]);
    }
}

template <class T>
void Training<T>::cross_entropy(T* logits, const int64_t* targets, const float* weights, float* losses, float* entropies,
                   size_t rows, size_t vocab) {
    parallel_rows(rows, [&](size_t first, size_t last, int) {
        std::vector<float> buffer(vocab);
        cross_entropy_rows(logits, targets, weights, losses, entropies, buffer.data(), first, last, vocab);
    });
}

// ---- RMSNorm
template <class T>
CLONES static void norm_rows(const T* x, const float* w, T* y, float* scales, float eps, size_t first,
                             size_t last, size_t width) {
    for (size_t row = first; row < last; ++row) {
        const T* xr = x + row * width;
        T* yr = y + row * width;
        float sum = 0.f;
        for (size_t i = 0; i < width; ++i) sum += widen(xr[i]) * widen(xr[i]);
        const float scale = 1.f / std::sqrt(sum / float(width) + eps);
        scales[row] = scale;
        for (size_t i = 0; i < width; ++i) put(yr[i], widen(xr[i]) * scale * w[i]);
    }
}

template <class T>
void Training<T>::rms_norm(const T* x, const float* w, T* y, float* scales, float eps, size_t rows, size_t width) {
    parallel_rows(rows, [&](size_t first, size_t last, int) { norm_rows(x, w, y, scales, eps, first, last, width); });
}

// dx = scale * (w dy - xhat * mean(w dy xhat)); dw += dy xhat
template <class T>
CLONES static void norm_backward_rows(const T* dy, const T* x, const float* w, const float* scales,
                                      T* dx, float* dw, size_t first, size_t last, size_t width) {
    for (size_t row = first; row < last; ++row) {
        const T *d = dy + row * width, *xr = x + row * width;
        T* out = dx + row * width;
        const float scale = scales[row];
        float dot = 0.f;
        for (size_t i = 0; i < width; ++i) {
            const float g = widen(d[i]), hat = widen(xr[i]) * scale;
            dw[i] += g * hat;
            dot += g * w[i] * hat;
        }
        dot /= float(width);
        for (size_t i = 0; i < width; ++i)
            put(out[i], scale * (widen(d[i]) * w[i] - widen(xr[i]) * scale * dot));
    }
}

template <class T>
void Training<T>::rms_norm_backward(const T* dy, const T* x, const float* w, const float* scales, T* dx,
                       float* dw, size_t rows, size_t width) {
    PartialSums sums(width);
    parallel_rows(rows, [&](size_t first, size_t last, int thread) {
        norm_backward_rows(dy, x, w, scales, dx, sums.of(thread), first, last, width);
    });
    sums.add_to(dw);
}

// ---- SwiGLU: y = silu(gate) * up, gate and up side by side in one row
template <class T>
CLONES static void swiglu_rows(const T* gate_up, T* y, size_t first, size_t last, size_t hidden) {
    for (size_t row = first; row < last; ++row) {
        const T *gate = gate_up + row * 2 * hidden, *up = gate + hidden;
        T* out = y + row * hidden;
        for (size_t i = 0; i < hidden; ++i) {
            const float g = widen(gate[i]);
            put(out[i], g / (1.f + exp_fast(-g)) * widen(up[i]));
        }
    }
}

template <class T>
void Training<T>::swiglu(const T* gate_up, T* y, size_t rows, size_t hidden) {
    parallel_rows(rows, [&](size_t first, size_t last, int) { swiglu_rows(gate_up, y, first, last, hidden); });
}

template <class T>
CLONES static void swiglu_backward_rows(const T* dy, const T* gate_up, T* d, size_t first,
                                        size_t last, size_t hidden) {
    for (size_t row = first; row < last; ++row) {
        const T *gate = gate_up + row * 2 * hidden, *up = gate + hidden, *g_out = dy + row * hidden;
        T *d_gate = d + row * 2 * hidden, *d_up = d_gate + hidden;
        for (size_t i = 0; i < hidden; ++i) {
            const float g = widen(gate[i]), u = widen(up[i]), out = widen(g_out[i]);
            const float sigmoid = 1.f / (1.f + exp_fast(-g)), silu = g * sigmoid;
            put(d_up[i], out * silu);
            put(d_gate[i], out * u * (sigmoid + silu * (1.f - sigmoid)));
        }
    }
}

template <class T>
void Training<T>::swiglu_backward(const T* dy, const T* gate_up, T* d, size_t rows, size_t hidden) {
    parallel_rows(rows,
                  [&](size_t first, size_t last, int) { swiglu_backward_rows(dy, gate_up, d, first, last, hidden); });
}

// ---- queries, keys, values: norm per head, rotate, and lay out as (B, heads, T, D)
template <class T>
CLONES static void heads_rows(const Heads& h, const T* qkv, const float* q_weight, const float* k_weight,
                              const float* cosine, const float* sine, T* q, T* k, T* v,
                              float* scales, size_t first, size_t last) {
    const size_t dim = h.dim, half = dim / 2, all = h.heads + 2 * h.kv_heads;
    float hat[256];
    for (size_t row = first; row < last; ++row) {
        const size_t b = row / h.length, t = row % h.length;
        const T* in = qkv + row * all * dim;
        const float *c = cosine + t * dim, *s = sine + t * dim;
        for (size_t head = 0; head < h.heads + h.kv_heads; ++head, in += dim) {
            const bool query = head < h.heads;
            const float* w = query ? q_weight : k_weight;
            float scale = 1.f;
            if (w) {
                float sum = 0.f;
                for (size_t i = 0; i < dim; ++i) sum += widen(in[i]) * widen(in[i]);
                scale = 1.f / std::sqrt(sum / float(dim) + h.eps);
                for (size_t i = 0; i < dim; ++i) hat[i] = widen(in[i]) * scale * w[i];
            } else {
                for (size_t i = 0; i < dim; ++i) hat[i] = widen(in[i]);
            }
            scales[row * (h.heads + h.kv_heads) + head] = scale;
            const float factor = query ? h.query_scale : 1.f;
            T* out = query ? q + ((b * h.heads + head) * h.length + t) * dim
                                  : k + ((b * h.kv_heads + head - h.heads) * h.length + t) * dim;
            for (size_t i = 0; i < half; ++i) {
                put(out[i], factor * (hat[i] * c[i] - hat[i + half] * s[i]));
                put(out[i + half], factor * (hat[i + half] * c[i] + hat[i] * s[i]));
            }
        }
        for (size_t head = 0; head < h.kv_heads; ++head, in += dim)
            std::memcpy(v + ((b * h.kv_heads + head) * h.length + t) * dim, in, dim * sizeof(T));
    }
}

template <class T>
void Training<T>::split_heads(const Heads& h, const T* qkv, const float* q_weight, const float* k_weight,
                 const float* cosine, const float* sine, T* q, T* k, T* v, float* scales) {
    parallel_rows(h.batches * h.length, [&](size_t first, size_t last, int) {
        heads_rows(h, qkv, q_weight, k_weight, cosine, sine, q, k, v, scales, first, last);
    });
}

template <class T>
CLONES static void heads_backward_rows(const Heads& h, const T* dq, const T* dk, const T* dv,
                                       const T* qkv, const float* q_weight, const float* k_weight,
                                       const float* cosine, const float* sine, const float* scales, T* d,
                                       float* d_weights, size_t first, size_t last) {
    const size_t dim = h.dim, half = dim / 2, all = h.heads + 2 * h.kv_heads;
    float g[256];
    for (size_t row = first; row < last; ++row) {
        const size_t b = row / h.length, t = row % h.length;
        const T* in = qkv + row * all * dim;
        T* out = d + row * all * dim;
        const float *c = cosine + t * dim, *s = sine + t * dim;
        for (size_t head = 0; head < h.heads + h.kv_heads; ++head, in += dim, out += dim) {
            const bool query = head < h.heads;
            const float* w = query ? q_weight : k_weight;
            float* dw = d_weights + (query ? 0 : dim);
            const float factor = query ? h.query_scale : 1.f;
            const T* from = query ? dq + ((b * h.heads + head) * h.length + t) * dim
                                         : dk + ((b * h.kv_heads + head - h.heads) * h.length + t) * dim;
            for (size_t i = 0; i < half; ++i) {  // the rotation's transpose
                const float left = widen(from[i]) * factor, right = widen(from[i + half]) * factor;
                g[i] = left * c[i] + right * s[i];
                g[i + half] = right * c[i] - left * s[i];
            }
            if (!w) {
                for (size_t i = 0; i < dim; ++i) put(out[i], g[i]);
                continue;
            }
            const float scale = scales[row * (h.heads + h.kv_heads) + head];
            float dot = 0.f;
            for (size_t i = 0; i < dim; ++i) {
                const float hat = widen(in[i]) * scale;
                dw[i] += g[i] * hat;
                dot += g[i] * w[i] * hat;
            }
            dot /= float(dim);
            for (size_t i = 0; i < dim; ++i) put(out[i], scale * (g[i] * w[i] - widen(in[i]) * scale * dot));
        }
        for (size_t head = 0; head < h.kv_heads; ++head, out += dim)
            std::memcpy(out, dv + ((b * h.kv_heads + head) * h.length + t) * dim, dim * sizeof(T));
    }
}

template <class T>
void Training<T>::split_heads_backward(const Heads& h, const T* dq, const T* dk, const T* dv,
                          const T* qkv, const float* q_weight, const float* k_weight, const float* cosine,
                          const float* sine, const float* scales, T* d, float* d_weights) {
    PartialSums sums(2 * h.dim);
    parallel_rows(h.batches * h.length, [&](size_t first, size_t last, int thread) {
        heads_backward_rows(h, dq, dk, dv, qkv, q_weight, k_weight, cosine, sine, scales, d, sums.of(thread), first,
                            last);
    });
    sums.add_to(d_weights);
}

template struct Training<uint16_t>;
template struct Training<float>;

}  // namespace ayllu
