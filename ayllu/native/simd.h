// Sixteen float lanes and the two dot products of the packed layouts, for the machine level this file is compiled for.
// Everything is in a namespace named after the level, so that one program can hold several.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

// The sums of a product's tile are to stay in registers. A tile is TALL rows high (of whole numbers WHOLE_TALL) and
// SIDE Floats wide; so many SUMS have room there beside two columns of weights. AVX-512 has thirty-two registers of a
// Float, AVX2 sixteen of half a Float, plain x86 sixteen and 64-bit ARM thirty-two of a quarter.
#if defined(__AVX512BW__) && defined(__AVX512VNNI__)
#define LEVEL avx512
#define TILES TALL = 6, WHOLE_TALL = 6, SIDE = 2, SUMS = 24
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__)
#define LEVEL avx2
#define TILES TALL = 6, WHOLE_TALL = 4, SIDE = 1, SUMS = 4
#include <immintrin.h>
#else
#define LEVEL portable
#if defined(__aarch64__)
#define TILES TALL = 6, WHOLE_TALL = 4, SIDE = 1, SUMS = 4
#else
#define TILES TALL = 2, WHOLE_TALL = 2, SIDE = 1, SUMS = 3
#endif
#endif
#define SIMD_INLINE static inline __attribute__((always_inline))

namespace ayllu::LEVEL {

constexpr size_t TILES;

#if defined(__AVX512BW__) && defined(__AVX512VNNI__)

using Float = __m512;
using Int = __m512i;
using Line = __m512i;  // 64 bytes of packed weights

SIMD_INLINE Float load(const float* p) { return _mm512_loadu_ps(p); }
SIMD_INLINE void store(float* p, Float x) { _mm512_storeu_ps(p, x); }
SIMD_INLINE Float all(float x) { return _mm512_set1_ps(x); }
SIMD_INLINE Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
SIMD_INLINE Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
SIMD_INLINE Float load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
SIMD_INLINE Float load_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
SIMD_INLINE Float load_i8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
SIMD_INLINE Int all_int(int32_t x) { return _mm512_set1_epi32(x); }
SIMD_INLINE Float to_float(Int x) { return _mm512_cvtepi32_ps(x); }
SIMD_INLINE Line load_line(const uint8_t* p) { return _mm512_loadu_si512(p); }
SIMD_INLINE void store_line(uint8_t* p, Line x) { _mm512_storeu_si512(p, x); }
SIMD_INLINE Line low_nibbles(Line x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
SIMD_INLINE Line high_nibbles(Line x) { return _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15)); }
// int8 weights as `dot4` wants them, and what their sums start from: what their offset of 128 adds, taken back.
using Bytes = Line;
SIMD_INLINE Bytes bytes_of(Line x) { return x; }
SIMD_INLINE Int bytes_start(int32_t offset) { return all_int(offset); }
// lane i: sum + w[4i..4i+3] . x[0..3]; w unsigned, x signed bytes
// (One instruction with the broadcast in it; compilers make it two, and these loops are bound by their number.)
SIMD_INLINE Int dot4(Int sum, Line w, const int8_t* x) {
    struct Four {
        int8_t bytes[4];
    };
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*reinterpret_cast<const Four*>(x)));
    return sum;
}
// A line of 32 bfloat16 numbers: those at even and at odd places.
SIMD_INLINE Float even_bf16(Line x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
SIMD_INLINE Float odd_bf16(Line x) {
    return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(int32_t(0xffff0000u))));
}

#elif defined(__AVX2__) && defined(__FMA__)

struct Float {
    __m256 a, b;
};
struct Int {
    __m256i a, b;
};
using Line = Int;

SIMD_INLINE Float load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
SIMD_INLINE void store(float* p, Float x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
SIMD_INLINE Float all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
SIMD_INLINE Float fma(Float x, Float y, Float z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
SIMD_INLINE Float mul(Float x, Float y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
SIMD_INLINE Float load_half(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
SIMD_INLINE __m256 widen8(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
SIMD_INLINE Float load_bf16(const uint16_t* p) { return {widen8(p), widen8(p + 8)}; }
SIMD_INLINE Float load_i8(const int8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
SIMD_INLINE Int all_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
SIMD_INLINE Float to_float(Int x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
SIMD_INLINE Line load_line(const uint8_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
SIMD_INLINE void store_line(uint8_t* p, Line x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), x.b);
}
SIMD_INLINE Line low_nibbles(Line x) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
SIMD_INLINE Line high_nibbles(Line x) {
    return low_nibbles({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)});
}
// VPMADDUBSW would saturate with weights up to 255 (not with nibbles): it gets their size without the offset of 128,
// and activations with the weights' sign (2 * 128 * 127 < 2^15).
struct Bytes {
    __m256i a, b, size_a, size_b;
};
SIMD_INLINE Bytes bytes_of(Line x) {
    const __m256i offset = _mm256_set1_epi8(-128);
    const __m256i a = _mm256_xor_si256(x.a, offset), b = _mm256_xor_si256(x.b, offset);
    return {a, b, _mm256_abs_epi8(a), _mm256_abs_epi8(b)};
}
SIMD_INLINE Int bytes_start(int32_t) { return all_int(0); }
SIMD_INLINE __m256i add4(__m256i sum, __m256i w, __m256i x) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
SIMD_INLINE __m256i four_of(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
}
SIMD_INLINE Int dot4(Int sum, Bytes w, const int8_t* x) {
    const __m256i wide = four_of(x);
    return {add4(sum.a, w.size_a, _mm256_sign_epi8(wide, w.a)), add4(sum.b, w.size_b, _mm256_sign_epi8(wide, w.b))};
}
SIMD_INLINE Int dot4(Int sum, Line nibbles, const int8_t* x) {
    const __m256i wide = four_of(x);
    return {add4(sum.a, nibbles.a, wide), add4(sum.b, nibbles.b, wide)};
}
SIMD_INLINE Float even_bf16(Line x) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(x.a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(x.b, 16))};
}
SIMD_INLINE Float odd_bf16(Line x) {
    const __m256i mask = _mm256_set1_epi32(int32_t(0xffff0000u));
    return {_mm256_castsi256_ps(_mm256_and_si256(x.a, mask)), _mm256_castsi256_ps(_mm256_and_si256(x.b, mask))};
}

#else  // plain loops, which compilers turn into whatever the machine has (NEON among it)

// Four lanes fit a register of every machine; of one array of sixteen compilers make none.
typedef float Quarter __attribute__((vector_size(16)));
struct Float {
    Quarter a, b, c, d;
};
struct Int {
    int32_t v[16];
};
struct Line {
    uint8_t v[64];
};
typedef Quarter Loose __attribute__((aligned(4), may_alias));  // anywhere in memory
SIMD_INLINE Loose& quarter(const float* p) { return *reinterpret_cast<Loose*>(const_cast<float*>(p)); }
SIMD_INLINE Float load(const float* p) { return {quarter(p), quarter(p + 4), quarter(p + 8), quarter(p + 12)}; }
SIMD_INLINE void store(float* p, Float x) {
    quarter(p) = x.a, quarter(p + 4) = x.b, quarter(p + 8) = x.c, quarter(p + 12) = x.d;
}
#define FLOATS(expression)                                \
    float values[16];                                     \
    for (int i = 0; i < 16; ++i) values[i] = expression;  \
    return load(values)
#define LANEWISE(type, expression)                        \
    type r;                                               \
    for (int i = 0; i < 16; ++i) r.v[i] = expression;     \
    return r

SIMD_INLINE Float all(float x) {
    const Quarter q{x, x, x, x};
    return {q, q, q, q};
}
SIMD_INLINE Float fma(Float x, Float y, Float z) {
    return {x.a * y.a + z.a, x.b * y.b + z.b, x.c * y.c + z.c, x.d * y.d + z.d};
}
SIMD_INLINE Float mul(Float x, Float y) { return {x.a * y.a, x.b * y.b, x.c * y.c, x.d * y.d}; }
SIMD_INLINE float half_lane(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
    const float normal = std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
    const float small = float(mantissa) * 0x1p-24f;
    return exponent ? normal : (sign ? -small : small);
}
SIMD_INLINE Float load_half(const uint16_t* p) { FLOATS(half_lane(p[i])); }
SIMD_INLINE Float load_bf16(const uint16_t* p) { FLOATS(std::bit_cast<float>(uint32_t(p[i]) << 16)); }
SIMD_INLINE Float load_i8(const int8_t* p) { FLOATS(float(p[i])); }
SIMD_INLINE Int all_int(int32_t x) { LANEWISE(Int, x); }
SIMD_INLINE Float to_float(Int x) { FLOATS(float(x.v[i])); }
SIMD_INLINE Line load_line(const uint8_t* p) {
    Line r;
    std::memcpy(r.v, p, 64);
    return r;
}
SIMD_INLINE void store_line(uint8_t* p, Line x) { std::memcpy(p, x.v, 64); }
SIMD_INLINE Line low_nibbles(Line x) {
    for (auto& b : x.v) b &= 15;
    return x;
}
SIMD_INLINE Line high_nibbles(Line x) {
    for (auto& b : x.v) b = uint8_t(b >> 4);
    return x;
}
using Bytes = Line;
SIMD_INLINE Bytes bytes_of(Line x) { return x; }
SIMD_INLINE Int bytes_start(int32_t offset) { return all_int(offset); }
SIMD_INLINE Int dot4(Int sum, Line w, const int8_t* x) {
    LANEWISE(Int, sum.v[i] + int(w.v[4 * i]) * x[0] + int(w.v[4 * i + 1]) * x[1] + int(w.v[4 * i + 2]) * x[2] +
                      int(w.v[4 * i + 3]) * x[3]);
}
SIMD_INLINE float bf16_at(Line x, int i) {
    uint16_t value;
    std::memcpy(&value, x.v + 2 * i, 2);
    return std::bit_cast<float>(uint32_t(value) << 16);
}
SIMD_INLINE Float even_bf16(Line x) { FLOATS(bf16_at(x, 2 * i)); }
SIMD_INLINE Float odd_bf16(Line x) { FLOATS(bf16_at(x, 2 * i + 1)); }
#undef LANEWISE
#undef FLOATS

#endif

// dot4 of B lines with one x.
template <size_t B, class Weights>
SIMD_INLINE void dots_of(Int* sums, const Weights* w, const int8_t* x) {
#if defined(__AVX512BW__) && defined(__AVX512VNNI__)
    if constexpr (B > 1) {  // loaded and spread over the lanes once
        int32_t four;
        std::memcpy(&four, x, 4);
        const Int wide = all_int(four);
        for (size_t b = 0; b < B; ++b) sums[b] = _mm512_dpbusd_epi32(sums[b], w[b], wide);
        return;
    }
#endif
    for (size_t b = 0; b < B; ++b) sums[b] = dot4(sums[b], w[b], x);
}

}  // namespace ayllu::LEVEL
