// The kernels of the decode step and of training's attention, written once on sixteen lanes and compiled for each
// machine level. Included by compute_avx512.cpp, compute_avx2.cpp and compute_portable.cpp only.
//
// Each output is the same chain of operations whatever the number of rows, so that a text comes out the same
// alone, in a batch, and with its beginning taken from the cache.

#include <algorithm>

#include "attention.h"
#include "flash.h"
#include "kernel_table.h"
#include "products.h"
#include "scalar.h"
#include "simd.h"

namespace ayllu::LEVEL {

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
const Kernels TABLE{NAME, matmul, quantise, attend, rms_norm, swiglu, flash_forward, flash_backward};

}  // namespace ayllu::LEVEL
