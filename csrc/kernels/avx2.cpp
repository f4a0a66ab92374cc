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

// 16 codes of a weight that ends at `end`, as int16; zeros past it.
inline __m256i load_codes(const int8_t* from, const int8_t* end) {
    if (end - from >= 16) return widen_codes(from);
    int8_t tail[16] = {};
    std::memcpy(tail, from, static_cast<size_t>(end - from));
    return widen_codes(tail);
}

inline __m256i load(const int16_t* from) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(from));
}

inline void store(__m256i v, void* to) {
    _mm256_storeu_si256(static_cast<__m256i*>(to), v);
}

inline void accumulate(__m256i& sum, __m256i a, __m256i b) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}

// Four registers of 8 partial sums to four sums.
inline void store_sums(const __m256i (&acc)[4], int32_t* sums) {
    const __m256i all =
        _mm256_hadd_epi32(_mm256_hadd_epi32(acc[0], acc[1]), _mm256_hadd_epi32(acc[2], acc[3]));
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums), four);
}

// The two digits of a word, for all columns.
inline __m256i broadcast_word(const int16_t* digits) {
    int32_t two;
    std::memcpy(&two, digits, sizeof two);
    return _mm256_set1_epi32(two);
}

// 8 rows of 8 int32 to 8 columns, in place.
inline void transpose(__m256i (&v)[8]) {
    __m256i t[8];
    for (int i = 0; i < 4; ++i) {
        t[2 * i] = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 2; ++j) {
            v[4 * i + 2 * j] = _mm256_unpacklo_epi64(t[4 * i + j], t[4 * i + 2 + j]);
            v[4 * i + 2 * j + 1] = _mm256_unpackhi_epi64(t[4 * i + j], t[4 * i + 2 + j]);
        }
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm256_permute2x128_si256(v[i], v[4 + i], 0x20);
        t[4 + i] = _mm256_permute2x128_si256(v[i], v[4 + i], 0x31);
    }
    for (int i = 0; i < 8; ++i) v[i] = t[i];
}

struct Avx2 : WordBlocks<Avx2> {
    using Digit = int16_t;
    using Panel = int16_t;
    static constexpr int kColumns = 16;  // a panel: two registers of 8 columns
    static constexpr int kMaxRows = 5;   // 10 accumulators, 2 panel registers, 1 broadcast, 1 product: of 16
    static constexpr int kDotRows = 2;   // 8 accumulators, 2 registers of digits, 1 of weights, 1 product
    static constexpr int kDotColumns = 4;  // as many as store_sums takes
    static constexpr int64_t kUnit = 16;
    static constexpr int64_t kFewRows = 12;
    static constexpr int32_t kOffset = 0;

    // 16 digits of kRows rows, times the same codes of the four columns.
    template <int kRows, class Digits, class Codes>
    static void dot_step(__m256i (&acc)[kRows][4], const Digits& digits_of, const Codes& codes_of) {
        __m256i digits[kRows];
        for (int r = 0; r < kRows; ++r) digits[r] = digits_of(r);
        for (int c = 0; c < kDotColumns; ++c) {
            const __m256i codes = codes_of(c);
            for (int r = 0; r < kRows; ++r) accumulate(acc[r][c], codes, digits[r]);
        }
    }

    template <int kRows>
    static void dot(const DotColumns<Avx2>& w, const DotRow<Avx2>* row, int64_t k, int64_t at) {
        __m256i acc[kRows][4];
        set_zero(acc);
        int64_t i = 0;
        for (; i + 64 <= k; i += 64) {
            if (k < kShortRow) {  // requests would cost more than they save
                w.prefetch_next(i, k, 0);
            } else {
                w.stream_next(i, k);
            }
            for (int64_t j = i; j < i + 64; j += 16) {
                dot_step<kRows>(
                    acc, [&](int r) { return load(row[r].digits + j); },
                    [&](int c) { return widen_codes(w.at[c] + j); });
            }
        }
        for (; i < k; i += 16) {
            dot_step<kRows>(
                acc, [&](int r) { return load(row[r].digits + i); },
                [&](int c) { return load_codes(w.at[c] + i, w.end); });
        }
        for (int r = 0; r < kRows; ++r) store_sums(acc[r], row[r].sums + at);
    }

    static void dot_units(const DotColumns<Avx2>& w, const HighUnits& units, int32_t* sums) {
        __m256i acc[1][4];
        set_zero(acc);
        const int16_t* digits = static_cast<const int16_t*>(units.digits);
        for (int64_t u = 0; u < units.count; ++u) {
            const int64_t i = units.index[u] * kUnit;
            dot_step<1>(
                acc, [&](int) { return load(digits + u * kUnit); },
                [&](int c) { return load_codes(w.at[c] + i, w.end); });
        }
        store_sums(acc[0], sums);
    }

    // Weight rows [begin, end) to a panel [padded_k / 2][16][2] of int16.
    static void pack_panel(const Product& product, int64_t begin, int64_t end, int16_t* panel) {
        const int64_t k = product.rows->k();
        for (int half = 0; half < 2; ++half) {
            const WeightRows<8> weight(product, begin + half * 8, end);
            for (int64_t i = 0; i < k; i += 16) {
                if (i % 64 == 0) weight.prefetch_next(i, k, kPackAhead);
                __m256i v[8];
                for (int c = 0; c < 8; ++c) v[c] = load_codes(weight.at[c] + i, weight.end);
                transpose(v);
                for (int w = 0; w < 8; ++w) store(v[w], panel + (i + 2 * w) * kColumns + half * 16);
            }
        }
    }

    template <int kRows>
    static void tile(const int16_t* panel, const HighUnits* first, const int16_t* lo, int64_t words,
                     int32_t (*sums)[kColumns], Ahead& ahead) {
        __m256i acc[kRows][2];
        set_zero(acc);
        if (first != nullptr) {
            add_units(panel, *first, acc);
#pragma GCC unroll 5
            for (int r = 0; r < kRows; ++r) {
                acc[r][0] = _mm256_slli_epi32(acc[r][0], 8);
                acc[r][1] = _mm256_slli_epi32(acc[r][1], 8);
            }
        }
        for (int64_t w = 0; w < words; ++w, panel += 2 * kColumns, lo += 2 * kRows) {
            ahead.step();
            tile_step<kRows>(acc, panel, lo);
        }
        store_tile<kRows>(acc, sums);
    }

    template <int kRows>
    static void tile_units(const int16_t* panel, const HighUnits& units, int32_t (*sums)[kColumns]) {
        __m256i acc[kRows][2];
        set_zero(acc);
        add_units(panel, units, acc);
        store_tile<kRows>(acc, sums);
    }

    template <int kRows>
    LLMINT8_INLINE static void add_units(const int16_t* panel, const HighUnits& units,
                                         __m256i (&acc)[kRows][2]) {
        const auto* digits = static_cast<const int16_t*>(units.digits);
        for (int64_t u = 0; u < units.count; ++u, digits += 2 * kRows) {
            tile_step<kRows>(acc, panel + units.index[u] * (2 * kColumns), digits);
        }
    }

    template <int kRows, int kSums>
    LLMINT8_INLINE static void set_zero(__m256i (&acc)[kRows][kSums]) {
        for (auto& row : acc) {
            for (auto& sum : row) sum = _mm256_setzero_si256();
        }
    }

    // A word of kRows rows times that word of the 16 columns.
    template <int kRows>
    static void tile_step(__m256i (&acc)[kRows][2], const int16_t* panel, const int16_t* digits) {
        const __m256i left = load(panel), right = load(panel + 16);
#pragma GCC unroll 5
        for (int r = 0; r < kRows; ++r) {
            const __m256i word = broadcast_word(digits + 2 * r);
            accumulate(acc[r][0], left, word);
            accumulate(acc[r][1], right, word);
        }
    }

    template <int kRows>
    static void store_tile(const __m256i (&acc)[kRows][2], int32_t (*sums)[kColumns]) {
#pragma GCC unroll 5  // a loop would make GCC keep the sums in memory from the start
        for (int r = 0; r < kRows; ++r) store(acc[r][0], sums[r]), store(acc[r][1], sums[r] + 8);
    }
};

}  // namespace

const KernelTable kAvx2Table = make_table<Avx2>("avx2", LLMINT8_CPU_AVX2);

}  // namespace llmint8
