// AVX-VNNI: the 256-bit vpdpbusd of CPUs without AVX-512 multiplies 32 unsigned bytes by 32 signed ones and
// sums fours into int32 lanes. Weights become unsigned by adding 128 (one xor), which the row's digit sum
// undoes.
#if defined(LLMINT8_EMULATE_AVXVNNI)
#define SIMDE_ENABLE_NATIVE_ALIASES  // the same source on any CPU, for tests
#include <simde/x86/avx2.h>
#include <simde/x86/avx512/dpbusd.h>
#define _mm256_dpbusd_avx_epi32 _mm256_dpbusd_epi32  // AVX-512's name for the same operation
#else
#include <immintrin.h>
#endif

#include "kernels/regimes.h"

namespace llmint8 {
namespace {

inline __m256i to_unsigned(__m256i codes) {
    return _mm256_xor_si256(codes, _mm256_set1_epi8(static_cast<char>(0x80)));
}

inline __m256i load_whole(const int8_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

// 32 codes of a weight that ends at `end`; past it, what the zero digits there cancel.
inline __m256i load_codes(const int8_t* from, const int8_t* end) {
    if (end - from >= 32) return to_unsigned(load_whole(from));
    int8_t tail[32] = {};
    std::memcpy(tail, from, static_cast<size_t>(end - from));
    return to_unsigned(load_whole(tail));
}

inline __m128i load_half(const int8_t* from, const int8_t* end) {
    if (end - from >= 16) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    int8_t tail[16] = {};
    std::memcpy(tail, from, static_cast<size_t>(end - from));
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(tail));
}

// 16 codes of each of two weight rows, one in each half.
inline __m256i load_two(const int8_t* low, const int8_t* high, const int8_t* end) {
    const __m256i first = _mm256_castsi128_si256(load_half(low, end));
    return to_unsigned(_mm256_inserti128_si256(first, load_half(high, end), 1));
}

template <class Element>
inline __m256i load(const Element* from) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(from));
}

inline void store(__m256i v, void* to) {
    _mm256_storeu_si256(static_cast<__m256i*>(to), v);
}

inline void accumulate(__m256i& sum, __m256i codes, __m256i digits) {
    sum = _mm256_dpbusd_avx_epi32(sum, codes, digits);
}

// Four registers of 8 partial sums to four sums.
inline void store_sums(const __m256i (&acc)[4], int32_t* sums) {
    const __m256i all =
        _mm256_hadd_epi32(_mm256_hadd_epi32(acc[0], acc[1]), _mm256_hadd_epi32(acc[2], acc[3]));
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums), four);
}

// The four digits of a word, for all columns.
inline __m256i broadcast_word(const int8_t* digits) {
    int32_t four;
    std::memcpy(&four, digits, sizeof four);
    return _mm256_set1_epi32(four);
}

// In each half, 4 rows of 4 words to 4 columns, in place.
inline void transpose_halves(__m256i (&v)[4]) {
    const __m256i low01 = _mm256_unpacklo_epi32(v[0], v[1]), low23 = _mm256_unpacklo_epi32(v[2], v[3]);
    const __m256i high01 = _mm256_unpackhi_epi32(v[0], v[1]), high23 = _mm256_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm256_unpacklo_epi64(low01, low23);
    v[1] = _mm256_unpackhi_epi64(low01, low23);
    v[2] = _mm256_unpacklo_epi64(high01, high23);
    v[3] = _mm256_unpackhi_epi64(high01, high23);
}

struct AvxVnni : WordBlocks<AvxVnni> {
    using Digit = int8_t;
    using Panel = uint8_t;
    static constexpr int kColumns = 16;    // a panel: two registers of 8 columns
    static constexpr int kMaxRows = 6;     // 12 accumulators, 2 panel registers, 1 broadcast: of 16
    static constexpr int kDotRows = 2;     // 8 accumulators, 2 registers of digits, 1 of weights, the offset
    static constexpr int kDotColumns = 4;  // as many as store_sums takes
    static constexpr int64_t kUnit = 32;
    static constexpr int64_t kFewRows = 8;
    static constexpr int32_t kOffset = 128;

    // 32 digits of kRows rows, times the same codes of the four columns.
    template <int kRows, class Digits, class Codes>
    static void dot_step(__m256i (&acc)[kRows][4], const Digits& digits_of, const Codes& codes_of) {
        __m256i digits[kRows];
        for (int r = 0; r < kRows; ++r) digits[r] = load(digits_of(r));
        for (int c = 0; c < kDotColumns; ++c) {
            const __m256i codes = codes_of(c);
            for (int r = 0; r < kRows; ++r) accumulate(acc[r][c], codes, digits[r]);
        }
    }

    template <int kRows>
    static void dot(const DotColumns<AvxVnni>& w, const DotRow<AvxVnni>* row, int64_t k, int64_t at) {
        __m256i acc[kRows][4];
        set_zero(acc);
        int64_t i = 0;
        for (; i + 64 <= k; i += 64) {
            w.stream_next(i, k);
            for (int64_t j = i; j < i + 64; j += 32) {
                dot_step<kRows>(
                    acc, [&](int r) { return row[r].digits + j; },
                    [&](int c) { return to_unsigned(load_whole(w.at[c] + j)); });
            }
        }
        for (; i < k; i += 32) {
            dot_step<kRows>(
                acc, [&](int r) { return row[r].digits + i; },
                [&](int c) { return load_codes(w.at[c] + i, w.end); });
        }
        for (int r = 0; r < kRows; ++r) store_sums(acc[r], row[r].sums + at);
    }

    static void dot_units(const DotColumns<AvxVnni>& w, const HighUnits& units, int32_t* sums) {
        __m256i acc[1][4];
        set_zero(acc);
        const int8_t* digits = static_cast<const int8_t*>(units.digits);
        for (int64_t u = 0; u < units.count; ++u) {
            dot_step<1>(
                acc, [&](int) { return digits + u * kUnit; },
                [&](int c) { return load_codes(w.at[c] + units.index[u] * kUnit, w.end); });
        }
        store_sums(acc[0], sums);
    }

    // Weight rows [begin, end) to a panel [padded_k / 4][16][4], unsigned.
    static void pack_panel(const Product& product, int64_t begin, int64_t end, uint8_t* panel) {
        const int64_t k = product.rows->k();
        for (int half = 0; half < 2; ++half) {
            const WeightRows<8> weight(product, begin + half * 8, end);
            for (int64_t i = 0; i < k; i += 16) {
                if (i % 64 == 0) weight.prefetch_next(i, k, kPackAhead);
                __m256i v[4];
                for (int c = 0; c < 4; ++c) {
                    v[c] = load_two(weight.at[c] + i, weight.at[c + 4] + i, weight.end);
                }
                transpose_halves(v);
                uint8_t* to = panel + i * kColumns + half * 32;
                for (int w = 0; w < 4; ++w) store(v[w], to + w * kWordBytes * kColumns);
            }
        }
    }

    template <int kRows>
    static void tile(const uint8_t* panel, const HighUnits* first, const int8_t* lo, int64_t words,
                     int32_t (*sums)[kColumns], Ahead& ahead) {
        __m256i acc[kRows][2];
        set_zero(acc);
        if (first != nullptr) {
            add_units(panel, *first, acc);
#pragma GCC unroll 6
            for (int r = 0; r < kRows; ++r) {
                acc[r][0] = _mm256_slli_epi32(acc[r][0], 8);
                acc[r][1] = _mm256_slli_epi32(acc[r][1], 8);
            }
        }
        for (int64_t w = 0; w < words; ++w, panel += kWordBytes * kColumns, lo += kWordBytes * kRows) {
            ahead.step();
            tile_step<kRows>(acc, panel, lo);
        }
        store_tile<kRows>(acc, sums);
    }

    template <int kRows>
    static void tile_units(const uint8_t* panel, const HighUnits& units, int32_t (*sums)[kColumns]) {
        __m256i acc[kRows][2];
        set_zero(acc);
        add_units(panel, units, acc);
        store_tile<kRows>(acc, sums);
    }

    template <int kRows>
    LLMINT8_INLINE static void add_units(const uint8_t* panel, const HighUnits& units,
                                         __m256i (&acc)[kRows][2]) {
        const auto* digits = static_cast<const int8_t*>(units.digits);
        for (int64_t u = 0; u < units.count; ++u, digits += kWordBytes * kRows) {
            tile_step<kRows>(acc, panel + units.index[u] * (kWordBytes * kColumns), digits);
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
    static void tile_step(__m256i (&acc)[kRows][2], const uint8_t* panel, const int8_t* digits) {
        const __m256i left = load(panel), right = load(panel + 32);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
            const __m256i word = broadcast_word(digits + kWordBytes * r);
            accumulate(acc[r][0], left, word);
            accumulate(acc[r][1], right, word);
        }
    }

    template <int kRows>
    static void store_tile(const __m256i (&acc)[kRows][2], int32_t (*sums)[kColumns]) {
#pragma GCC unroll 6  // a loop would make GCC keep the sums in memory from the start
        for (int r = 0; r < kRows; ++r) store(acc[r][0], sums[r]), store(acc[r][1], sums[r] + 8);
    }
};

}  // namespace

const KernelTable kAvxVnniTable = make_table<AvxVnni>("avxvnni", LLMINT8_CPU_AVXVNNI);

}  // namespace llmint8
