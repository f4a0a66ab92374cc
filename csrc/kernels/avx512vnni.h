// AVX-512 VNNI, also for what AMX leaves to it: vpdpbusd multiplies 64 unsigned bytes by 64 signed ones and
// sums fours into int32 lanes. Weights become unsigned by adding 128 (one xor), which the row's digit sum
// undoes.
#pragma once

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

// The first `bytes` of 64, or all if there are more; zeros behind.
inline __m512i load_part(const int8_t* from, int64_t bytes) {
    if (bytes >= 64) return _mm512_loadu_si512(from);
    int8_t part[64] = {};
    if (bytes > 0) std::memcpy(part, from, static_cast<size_t>(bytes));
    return _mm512_loadu_si512(part);
}

// 64 codes of a weight that ends at `end`; past it, what the zero digits there cancel.
inline __m512i load_codes(const int8_t* from, const int8_t* end) {
    return to_unsigned(load_part(from, end - from));
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

struct Avx512Vnni : WordBlocks<Avx512Vnni> {
    using Digit = int8_t;
    using Panel = uint8_t;
    static constexpr int kColumns = 32;    // a panel: two registers of 16 columns
    static constexpr int kMaxRows = 12;    // 24 accumulators, 2 panel registers, 1 broadcast: of 32
    static constexpr int kDotRows = 4;     // 16 accumulators, 4 weight registers, 1 of digits
    static constexpr int kDotColumns = 4;  // as many as store_sums takes
    static constexpr int64_t kUnit = 64;
    static constexpr int64_t kIdleRows = 4;
    static constexpr int64_t kFewRows = 8;
    static constexpr int32_t kOffset = 128;

    // 64 digits of kRows rows, times the same codes of the four columns.
    template <int kRows, class Digits, class Codes>
    LLMINT8_INLINE static void dot_step(__m512i (&acc)[kRows][kDotColumns], const Digits& digits_of,
                                        const Codes& codes_of) {
        __m512i codes[kDotColumns];
        for (int c = 0; c < kDotColumns; ++c) codes[c] = codes_of(c);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            const __m512i digits = digits_of(r);
#pragma GCC unroll 4
            for (int c = 0; c < kDotColumns; ++c)
                acc[r][c] = _mm512_dpbusd_epi32(acc[r][c], codes[c], digits);
        }
    }

    template <int kRows>
    KEEP_SUMS_IN_REGISTERS static void dot(const DotColumns<Avx512Vnni>& w, const DotRow<Avx512Vnni>* row,
                                           int64_t k, int64_t at) {
        __m512i acc[kRows][kDotColumns];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
            for (int c = 0; c < kDotColumns; ++c) acc[r][c] = _mm512_setzero_si512();
        }
        const int64_t whole = k / 64 * 64;
        for (int64_t i = 0; i < whole; i += 64) {
            w.stream_next(i, k);
            dot_step<kRows>(
                acc, [&](int r) { return _mm512_load_si512(row[r].digits + i); },
                [&](int c) { return to_unsigned(_mm512_loadu_si512(w.at[c] + i)); });
        }
        if (whole < k) {
            dot_step<kRows>(
                acc, [&](int r) { return _mm512_load_si512(row[r].digits + whole); },
                [&](int c) { return load_codes(w.at[c] + whole, w.end); });
        }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            store_sums(acc[r][0], acc[r][1], acc[r][2], acc[r][3], row[r].sums + at);
        }
    }

    static void dot_units(const DotColumns<Avx512Vnni>& w, const HighUnits& units, int32_t* sums) {
        __m512i acc[1][kDotColumns];
        for (auto& sum : acc[0]) sum = _mm512_setzero_si512();
        const int8_t* digits = static_cast<const int8_t*>(units.digits);
        for (int64_t u = 0; u < units.count; ++u) {
            dot_step<1>(
                acc, [&](int) { return _mm512_load_si512(digits + u * kUnit); },
                [&](int c) { return load_codes(w.at[c] + units.index[u] * kUnit, w.end); });
        }
        store_sums(acc[0][0], acc[0][1], acc[0][2], acc[0][3], sums);
    }

    // Weight rows [begin, end) to a panel [padded_k / 4][32][4], unsigned.
    static void pack_panel(const Product& product, int64_t begin, int64_t end, uint8_t* panel) {
        const int64_t k = product.rows->k(), whole = k / 64 * 64;
        for (int half = 0; half < 2; ++half, panel += 64) {
            const WeightRows<16> weight(product, begin + half * 16, end);
            for (int64_t i = 0; i < whole; i += 64) {
                weight.prefetch_next(i, k, kPackAhead);
                pack_step([&](int c) { return to_unsigned(_mm512_loadu_si512(weight.at[c] + i)); },
                          panel + i * kColumns);
            }
            if (whole < k) {
                pack_step([&](int c) { return load_codes(weight.at[c] + whole, weight.end); },
                          panel + whole * kColumns);
            }
        }
    }

    // 64 codes of 16 columns to 16 words of a panel.
    template <class Codes>
    LLMINT8_INLINE static void pack_step(const Codes& codes_of, uint8_t* panel) {
        __m512i v[16];
        for (int c = 0; c < 16; ++c) v[c] = codes_of(c);
        transpose(v);
        for (int g = 0; g < 16; ++g) _mm512_store_si512(panel + g * kWordBytes * kColumns, v[g]);
    }

    template <int kRows>
    static void tile(const uint8_t* panel, const int8_t* lo, int64_t words, int32_t (*sums)[kColumns],
                     Ahead& ahead) {
        __m512i acc[kRows][2];
        for (auto& row : acc) row[0] = row[1] = _mm512_setzero_si512();
        for (int64_t w = 0; w < words; ++w, panel += kWordBytes * kColumns, lo += kWordBytes * kRows) {
            ahead.step();
            tile_step<kRows>(acc, panel, lo);
        }
        store_tile<kRows>(acc, sums);
    }

    template <int kRows>
    static void tile_units(const uint8_t* panel, const HighUnits& units, int32_t (*sums)[kColumns]) {
        constexpr int kChains = kRows == 1 ? 2 : 1;  // a single chain would wait for its own latency
        __m512i acc[kChains][kRows][2];
        for (auto& chain : acc) {
            for (auto& row : chain) row[0] = row[1] = _mm512_setzero_si512();
        }
        const int8_t* digits = static_cast<const int8_t*>(units.digits);
        for (int64_t u = 0; u < units.count; u += kChains) {
#pragma GCC unroll 2
            for (int chain = 0; chain < kChains; ++chain, digits += kWordBytes * kRows) {
                if (u + chain == units.count) break;
                tile_step<kRows>(acc[chain], panel + units.index[u + chain] * (kWordBytes * kColumns),
                                 digits);
            }
        }
        for (int chain = 1; chain < kChains; ++chain) {
            for (int half = 0; half < 2; ++half) {
                acc[0][0][half] = _mm512_add_epi32(acc[0][0][half], acc[chain][0][half]);
            }
        }
        store_tile<kRows>(acc[0], sums);
    }

    // A word of kRows rows times that word of the 32 columns.
    template <int kRows>
    static void tile_step(__m512i (&acc)[kRows][2], const uint8_t* panel, const int8_t* digits) {
        const __m512i left = _mm512_load_si512(panel), right = _mm512_load_si512(panel + 64);
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) {
            const __m512i word = broadcast_word(digits + kWordBytes * r);
            acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], left, word);
            acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], right, word);
        }
    }

    template <int kRows>
    static void store_tile(const __m512i (&acc)[kRows][2], int32_t (*sums)[kColumns]) {
#pragma GCC unroll 12  // a loop would make GCC keep the sums in memory from the start
        for (int r = 0; r < kRows; ++r) {
            _mm512_store_si512(sums[r], acc[r][0]);
            _mm512_store_si512(sums[r] + 16, acc[r][1]);
        }
    }
};

}  // namespace
}  // namespace llmint8
