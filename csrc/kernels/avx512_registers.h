// Registers of 64 codes and of 16 sums: how they are loaded, summed and transposed. Internal linkage, as in
// float_bits.h and for the same reason.
#pragma once

#if defined(LLMINT8_EMULATE_AVX512)
#define SIMDE_ENABLE_NATIVE_ALIASES  // the same source on any CPU, for tests
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#else
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

namespace llmint8 {
namespace {

inline __m512i to_unsigned(__m512i codes) {
    return _mm512_xor_si512(codes, _mm512_set1_epi8(static_cast<char>(0x80)));
}

// The first `bytes` of 64, or all if there are more; zeros behind.
inline __m512i load_part(const int8_t* from, int64_t bytes) {
    if (bytes >= 64) return _mm512_loadu_si512(from);
#if defined(LLMINT8_EMULATE_AVX512)  // SIMDe does not have the instruction
    int8_t part[64] = {};
    if (bytes > 0) std::memcpy(part, from, static_cast<size_t>(bytes));
    return _mm512_loadu_si512(part);
#else
    return _mm512_maskz_loadu_epi8(bytes > 0 ? (uint64_t{1} << bytes) - 1 : 0, from);
#endif
}

// 64 codes of a weight that ends at `end`; past it, what the zero digits there cancel.
inline __m512i load_codes(const int8_t* from, const int8_t* end) {
    return to_unsigned(load_part(from, end - from));
}

// `codes`, but for those places which are read, a bit each.
inline __m512i load_places(__m512i codes, uint64_t places, const int8_t* from) {
#if defined(LLMINT8_EMULATE_AVX512)
    int8_t all[64];
    _mm512_storeu_si512(all, codes);
    for (; places != 0; places &= places - 1) all[__builtin_ctzll(places)] = from[__builtin_ctzll(places)];
    return _mm512_loadu_si512(all);
#else
    return _mm512_mask_loadu_epi8(codes, places, from);
#endif
}

// Four registers of 16 partial sums to four sums.
inline void store_sums(__m512i a, __m512i b, __m512i c, __m512i d, int32_t* sums) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums), four);
}

// The four digits of a word, for all columns.
inline __m512i broadcast_word(const int8_t* digits) {
    int32_t four;
    std::memcpy(&four, digits, sizeof four);
    return _mm512_set1_epi32(four);
}

// 16 rows of 16 int32 to 16 columns, in place.
inline void transpose(__m512i (&v)[16]) {
    __m512i t[16];
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 2; ++j) {
            v[4 * i + 2 * j] = _mm512_unpacklo_epi64(t[4 * i + j], t[4 * i + 2 + j]);
            v[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(t[4 * i + j], t[4 * i + 2 + j]);
        }
    }
    for (int j = 0; j < 4; ++j) {
        t[j] = _mm512_shuffle_i32x4(v[j], v[4 + j], 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(v[j], v[4 + j], 0xdd);
        t[8 + j] = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0x88);
        t[12 + j] = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0xdd);
    }
    for (int j = 0; j < 4; ++j) {
        v[j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88);
        v[4 + j] = _mm512_shuffle_i32x4(t[4 + j], t[12 + j], 0x88);
        v[8 + j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0xdd);
        v[12 + j] = _mm512_shuffle_i32x4(t[4 + j], t[12 + j], 0xdd);
    }
}

}  // namespace
}  // namespace llmint8
