// AVX2: digits and weights widen to int16, vpmaddwd multiplies and sums pairs into int32 lanes. Exact for
// every int8, where the faster-looking vpmaddubsw saturates at 16 bits; and on two multipliers a cycle no
// slower.
#include <immintrin.h>

#include "kernels/regimes.h"

namespace llmint8 {
namespace {

inline __m256i widen_codes(const int8_t* from) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

// 16 codes from position i of a weight row on, as int16; zeros past its end.
inline __m256i load_codes(const int8_t* weight, int64_t i, int64_t k) {
    if (k - i >= 16) return widen_codes(weight + i);
    int8_t tail[16] = {};
    if (k > i) std::memcpy(tail, weight + i, static_cast<size_t>(k - i));
    return widen_codes(tail);
}

inline void accumulate(__m256i& sum, __m256i a, __m256i b) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}

// Four registers of 8 partial sums to four sums.
inline void store_sums(__m256i a, __m256i b, __m256i c, __m256i d, int32_t* sums) {
    const __m256i all = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums), four);
}

// Four digits as int16, repeated for the four columns of a register.
inline __m256i broadcast_group(const int8_t* digits) {
    int32_t four;
    std::memcpy(&four, digits, sizeof four);
    return _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
}

inline __m256i load_panel(const int16_t* panel) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(panel));
}

// Registers of (two partial sums a column) x 4 columns to 16 columns.
inline void store_columns(const __m256i (&acc)[4], int32_t* sums) {
    for (int h = 0; h < 2; ++h) {
        const __m256i mixed = _mm256_hadd_epi32(acc[2 * h], acc[2 * h + 1]);  // columns 0 1 4 5 2 3 6 7
        const __m256i ordered = _mm256_permute4x64_epi64(mixed, 0xd8);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + 8 * h), ordered);
    }
}

struct Avx2 {
    using Panel = int16_t;
    static constexpr int kColumns = 16;    // a panel: four registers of 4 columns x 4 digits
    static constexpr int kMaxRows = 3;     // 12 accumulators, 1 panel register, 3 broadcasts: of 16
    static constexpr int kDotRows = 2;     // 8 accumulators, 4 weight registers, 1 of digits
    static constexpr int kDotColumns = 4;  // as many as store_sums takes
    static constexpr int64_t kFewRows = 8;
    static constexpr int32_t kOffset = 0;

    template <int kRows>
    static void dot_low(const DotColumns<Avx2>& w, const int8_t* lo, int64_t stride, int64_t k,
                        int32_t (*sums)[kColumns]) {
        __m256i acc[kRows][kDotColumns];
        for (auto& row : acc) {
            for (auto& sum : row) sum = _mm256_setzero_si256();
        }
        for (int64_t i = 0; i < k; i += 16) {
            __m256i codes[kDotColumns];
            for (int c = 0; c < kDotColumns; ++c) codes[c] = load_codes(w.at[c], i, k);
            for (int r = 0; r < kRows; ++r) {
                const __m256i digits = widen_codes(lo + r * stride + i);
                for (int c = 0; c < kDotColumns; ++c) accumulate(acc[r][c], codes[c], digits);
            }
        }
        for (int r = 0; r < kRows; ++r) store_sums(acc[r][0], acc[r][1], acc[r][2], acc[r][3], sums[r]);
    }

    static void dot_high(const DotColumns<Avx2>& w, const QuantizedRows& rows, int64_t row, int32_t* sums) {
        __m256i acc[kDotColumns];
        for (auto& sum : acc) sum = _mm256_setzero_si256();
        const uint32_t* units = rows.high_units(row);
        for (uint32_t u = 0; u < rows.high_count(row); ++u) {
            for (int64_t i = units[u] * kRowUnit; i < (units[u] + 1) * kRowUnit; i += 16) {
                const __m256i digits = widen_codes(rows.hi(row) + i);
                for (int c = 0; c < kDotColumns; ++c)
                    accumulate(acc[c], load_codes(w.at[c], i, rows.k()), digits);
            }
        }
        store_sums(acc[0], acc[1], acc[2], acc[3], sums);
    }

    // Weight rows [begin, end) to a panel [padded_k / 4][16][4] of int16.
    static void pack_panel(const LinearCall& call, int64_t begin, int64_t end, int16_t* panel) {
        const int64_t k = call.rows->k();
        for (int c = 0; c < kColumns; ++c) {
            const int8_t* weight = call.weight + (begin + c < end ? begin + c : end - 1) * k;
            int16_t* to = panel + kGroup * c;
            for (int64_t i = 0; i < k; i += 16, to += 16 * kColumns) {
                const __m256i codes = load_codes(weight, i, k);
                const __m128i left = _mm256_castsi256_si128(codes),
                              right = _mm256_extracti128_si256(codes, 1);
                const __m128i groups[4] = {left, _mm_unpackhi_epi64(left, left), right,
                                           _mm_unpackhi_epi64(right, right)};
                for (int g = 0; g < 4; ++g) {
                    _mm_storel_epi64(reinterpret_cast<__m128i*>(to + g * kGroup * kColumns), groups[g]);
                }
            }
        }
    }

    template <int kRows>
    static void tile_low(const int16_t* panel, const int8_t* lo, int64_t groups, int32_t (*sums)[kColumns]) {
        __m256i acc[kRows][4];
        for (auto& row : acc) {
            for (auto& sum : row) sum = _mm256_setzero_si256();
        }
        for (int64_t g = 0; g < groups; ++g, panel += kGroup * kColumns, lo += kGroup * kRows) {
            __m256i digits[kRows];
            for (int r = 0; r < kRows; ++r) digits[r] = broadcast_group(lo + kGroup * r);
#pragma GCC unroll 4
            for (int c = 0; c < 4; ++c) {
                const __m256i codes = load_panel(panel + 16 * c);
                for (int r = 0; r < kRows; ++r) accumulate(acc[r][c], codes, digits[r]);
            }
        }
        for (int r = 0; r < kRows; ++r) store_columns(acc[r], sums[r]);
    }

    // The high digits of one row of a block; hi points at its first group, stride bytes before the next.
    static void row_high(const int16_t* panel, const int8_t* hi, int64_t stride, const uint32_t* units,
                         uint32_t count, int32_t* sums) {
        __m256i acc[4];
        for (auto& sum : acc) sum = _mm256_setzero_si256();
        for (uint32_t u = 0; u < count; ++u) {
            const int64_t g = units[u];
            const __m256i digits = broadcast_group(hi + g * stride);
            for (int c = 0; c < 4; ++c)
                accumulate(acc[c], load_panel(panel + g * kGroup * kColumns + 16 * c), digits);
        }
        store_columns(acc, sums);
    }
};

}  // namespace

const KernelTable kAvx2Table = make_table<Avx2>("avx2", LLMINT8_CPU_AVX2);

}  // namespace llmint8
