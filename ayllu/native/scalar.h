// bfloat16 and exp in forms that compilers turn into vector code.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

// One function, several machine levels, chosen at load time (GNU ifunc); plain code elsewhere.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#define INLINE inline __attribute__((always_inline))

namespace ayllu {

INLINE float widen(uint16_t x) { return std::bit_cast<float>(uint32_t(x) << 16); }

// Round to nearest, ties to even, as PyTorch does. (NaN payloads are not kept.)
INLINE uint16_t narrow(float x) {
    uint32_t u = std::bit_cast<uint32_t>(x);
    return uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

// The same for numbers that are float32 already, so that one text of a kernel serves both.
INLINE float widen(float x) { return x; }
INLINE void put(uint16_t& to, float x) { to = narrow(x); }
INLINE void put(float& to, float x) { to = x; }

// e^x for x in about [-87, 88], relative error below 2e-7; smaller x give about 1e-38.
INLINE float exp_fast(float x) {
    x = std::min(std::max(x, -87.f), 88.f);
    const float n = std::nearbyint(x * 1.44269504f);
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    return p * std::bit_cast<float>((int32_t(n) + 127) << 23);
}

// The largest of n > 0 values. The pragma allows the running maximum to be split into lanes (which
// compilers refuse otherwise, because of NaN).
template <class T>
INLINE float largest(const T* x, size_t n) {
    float top = widen(x[0]);
#pragma omp simd reduction(max : top)
    for (size_t i = 1; i < n; ++i) {
        const float v = widen(x[i]);
        top = v > top ? v : top;
    }
    return top;
}

}  // namespace ayllu
