// AVX-512 VNNI: vpdpbusd multiplies 64 unsigned bytes by 64 signed ones and sums fours into int32 lanes.
// Weights become unsigned by adding 128 (one xor), which the row's digit sum undoes.
#if defined(LLMINT8_EMULATE_AVX512)
#define SIMDE_ENABLE_NATIVE_ALIASES  // the same source on any CPU, for tests
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#else
#include <immintrin.h>
#endif

#include "kernels/regimes.h"

namespace llmint8 {
namespace {

inline __m512i to_unsigned(__m512i codes) {
    return _mm512_xor_si512(codes, _mm512_set1_epi8(static_cast<char>(0x80)));
}

// 64 codes from position i of a weight row on; past its end, what the zero digits there cancel.
inline __m512i load_codes(const int8_t* weight, int64_t i, int64_t k) {
    if (k - i >= 64) return to_unsigned(_mm512_loadu_si512(weight + i));
    int8_t tail[64] = {};
    std::memcpy(tail, weight + i, static_cast<size_t>(k - i));
    return to_unsigned(_mm512_loadu_si512(tail));
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

struct Avx512Vnni {
    using Digit = int8_t;
    using Panel = uint8_t;
    static constexpr int kColumns = 32;    // a panel: two registers of 16 columns
    static constexpr int kMaxRows = 12;    // 24 accumulators, 2 panel registers, 1 broadcast: of 32
    static constexpr int kDotRows = 4;     // 16 accumulators, 4 weight registers, 1 of digits
    static constexpr int kDotColumns = 4;  // as many as store_sums takes
    static constexpr int64_t kFewRows = 8;
    static constexpr int32_t kOffset = 128;

    template <int kRows>
    static void dot_low(const DotColumns<Avx512Vnni>& w, const int8_t* lo, int64_t stride, int64_t k,
                        int32_t (*sums)[kColumns]) {
        __m512i acc[kRows][kDotColumns];
        for (auto& row : acc) {
            for (auto& sum : row) sum = _mm512_setzero_si512();
        }
        for (int64_t i = 0; i < k; i += 64) {
            __m512i codes[kDotColumns];
            for (int c = 0; c < kDotColumns; ++c) codes[c] = load_codes(w.at[c], i, k);
            for (int r = 0; r < kRows; ++r) {
                const __m512i digits = _mm512_load_si512(lo + r * stride + i);
                for (int c = 0; c < kDotColumns; ++c) {
                    acc[r][c] = _mm512_dpbusd_epi32(acc[r][c], codes[c], digits);
                }
            }
        }
        for (int r = 0; r < kRows; ++r) store_sums(acc[r][0], acc[r][1], acc[r][2], acc[r][3], sums[r]);
    }

    static void dot_high(const DotColumns<Avx512Vnni>& w, const QuantizedRows& rows, int64_t row,
                         int32_t* sums) {
        __m512i acc[kDotColumns];
        for (auto& sum : acc) sum = _mm512_setzero_si512();
        const uint32_t* units = rows.high_units(row);
        for (uint32_t u = 0; u < rows.high_count(row); ++u) {
            const int64_t i = units[u] * kRowUnit;
            const __m512i digits = _mm512_load_si512(rows.hi<int8_t>(row) + i);
            for (int c = 0; c < kDotColumns; ++c) {
                acc[c] = _mm512_dpbusd_epi32(acc[c], load_codes(w.at[c], i, rows.k()), digits);
            }
        }
        store_sums(acc[0], acc[1], acc[2], acc[3], sums);
    }

    // Weight rows [begin, end) to a panel [padded_k / 4][32][4], unsigned.
    static void pack_panel(const LinearCall& call, int64_t begin, int64_t end, uint8_t* panel) {
        const int64_t k = call.rows->k();
        for (int half = 0; half < 2; ++half) {
            for (int64_t i = 0; i < k; i += 64) {
                __m512i v[16];
                for (int c = 0; c < 16; ++c) {
                    const int64_t n = begin + half * 16 + c;
                    v[c] = load_codes(call.weight + (n < end ? n : end - 1) * k, i, k);
                }
                transpose(v);
                uint8_t* to = panel + i * kColumns + half * 64;
                for (int g = 0; g < 16; ++g) _mm512_store_si512(to + g * kWordBytes * kColumns, v[g]);
            }
        }
    }

    template <int kRows>
    static void tile_low(const uint8_t* panel, const int8_t* lo, int64_t words, int32_t (*sums)[kColumns]) {
        __m512i acc[kRows][2];
        for (auto& row : acc) row[0] = row[1] = _mm512_setzero_si512();
        for (int64_t w = 0; w < words; ++w, panel += kWordBytes * kColumns, lo += kWordBytes * kRows) {
            const __m512i left = _mm512_load_si512(panel), right = _mm512_load_si512(panel + 64);
#pragma GCC unroll 12
            for (int r = 0; r < kRows; ++r) {
                const __m512i digits = broadcast_word(lo + kWordBytes * r);
                acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], left, digits);
                acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], right, digits);
            }
        }
        for (int r = 0; r < kRows; ++r) {
            _mm512_store_si512(sums[r], acc[r][0]);
            _mm512_store_si512(sums[r] + 16, acc[r][1]);
        }
    }

    // The high digits of one row of a block; hi points at its first word, stride digits before the next.
    static void row_high(const uint8_t* panel, const int8_t* hi, int64_t stride, const uint32_t* units,
                         uint32_t count, int32_t* sums) {
        __m512i acc[2][2];  // two chains of two halves: one chain would wait for its own latency
        acc[0][0] = acc[0][1] = acc[1][0] = acc[1][1] = _mm512_setzero_si512();
        for (uint32_t u = 0; u < count; u += 2) {
#pragma GCC unroll 2
            for (uint32_t chain = 0; chain < 2; ++chain) {
                if (u + chain == count) break;
                const int64_t g = units[u + chain];
                const __m512i digits = broadcast_word(hi + g * stride);
                const uint8_t* from = panel + g * kWordBytes * kColumns;
                acc[chain][0] = _mm512_dpbusd_epi32(acc[chain][0], _mm512_load_si512(from), digits);
                acc[chain][1] = _mm512_dpbusd_epi32(acc[chain][1], _mm512_load_si512(from + 64), digits);
            }
        }
        _mm512_store_si512(sums, _mm512_add_epi32(acc[0][0], acc[1][0]));
        _mm512_store_si512(sums + 16, _mm512_add_epi32(acc[0][1], acc[1][1]));
    }
};

}  // namespace

const KernelTable kAvx512VnniTable = make_table<Avx512Vnni>("avx512vnni", LLMINT8_CPU_AVX512_VNNI);

}  // namespace llmint8
