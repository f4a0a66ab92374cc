// AVX-512 VNNI, also for what AMX leaves to it: vpdpbusd multiplies 64 unsigned bytes by 64 signed ones and
// sums fours into int32 lanes. Weights become unsigned by adding 128 (one xor), which the row's digit sum
// undoes.
#pragma once

#include "kernels/avx512_registers.h"
#include "kernels/regimes.h"

namespace llmint8 {
namespace {

struct Avx512Vnni : WordBlocks<Avx512Vnni> {
    using Digit = int8_t;
    using Panel = uint8_t;
    static constexpr int kColumns = 32;    // a panel: two registers of 16 columns
    static constexpr int kMaxRows = 12;    // 24 accumulators, 2 panel registers, 1 broadcast: of 32
    static constexpr int kDotRows = 4;     // 16 accumulators, 4 weight registers, 1 of digits
    static constexpr int kDotColumns = 4;  // as many as store_sums takes
    static constexpr int64_t kUnit = 64;
    static constexpr int64_t kFewRows = 24;
    static constexpr int32_t kOffset = 128;
    static constexpr bool kHighFirst = true;

    static DigitLayout layout(int64_t m) {
        DigitLayout layout = WordBlocks::layout(m);
        layout.mark_words = mark_words;
        return layout;
    }

    static void mark_words(const int8_t* digits, int64_t count, uint32_t* masks) {
        const auto mark = [&](int64_t i) -> uint32_t {
            const __m512i some = _mm512_loadu_si512(digits + i);
            return _mm512_test_epi32_mask(some, some);
        };
        for (int64_t i = 0; i < count; i += 128)
            *masks++ = mark(i) | (i + 64 < count ? mark(i + 64) << 16 : 0);
    }

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

    // Of high digits: steps that were folded into one, and whole ones.
    template <int kRows>
    LLMINT8_INLINE static void dot_high(__m512i (&acc)[kRows][kDotColumns], const DotColumns<Avx512Vnni>& w,
                                        const DotRow<Avx512Vnni>* row, int64_t k) {
        const auto& high = *row[0].steps;
        const int64_t whole = k / 64 * 64;
        for (int64_t f = 0; f < high.folds; ++f) {
            const auto& fold = high.fold[f];
            __m512i codes[kDotColumns];
            for (auto& some : codes) some = _mm512_setzero_si512();
            for (int64_t p = 0; p < fold.parts; ++p) {
                const auto& part = fold.part[p];
                if (high.meets_first) w.stream_next(part.at, k);
                for (int c = 0; c < kDotColumns; ++c)
                    codes[c] = load_places(codes[c], part.places, w.at[c] + part.at);
            }
            dot_step<kRows>(
                acc, [&](int r) { return _mm512_load_si512(fold.digits[r]); },
                [&](int c) { return to_unsigned(codes[c]); });
        }
        for (int64_t from = 0; from < k; from += 64 * 64) {
            for (uint64_t steps = high.whole[from / (64 * 64)]; steps != 0; steps &= steps - 1) {
                const int64_t i = from + 64 * __builtin_ctzll(steps);
                w.stream_next(i, k);
                dot_step<kRows>(
                    acc, [&](int r) { return _mm512_load_si512(row[r].first + i); },
                    [&](int c) {
                        return i < whole ? to_unsigned(_mm512_loadu_si512(w.at[c] + i))
                                         : load_codes(w.at[c] + i, w.end);
                    });
            }
        }
    }

    static uint64_t nonzero(const int8_t* digits) {
        const __m512i some = _mm512_load_si512(digits);
        return _mm512_test_epi8_mask(some, some);
    }

    template <int kRows>
    KEEP_SUMS_IN_REGISTERS static void dot(const DotColumns<Avx512Vnni>& w, const DotRow<Avx512Vnni>* row,
                                           int64_t k, int64_t at) {
        __m512i acc[kRows][kDotColumns];
        set_zero(acc);
        const int64_t whole = k / 64 * 64;
        if (row[0].first != nullptr) dot_high<kRows>(acc, w, row, k);
        if (row[0].first != nullptr && row[0].digits != nullptr) times_256(acc);
        int64_t i = row[0].digits != nullptr ? 0 : k;
        for (; i < whole; i += 64) {
            w.stream_next(i, k);
            dot_step<kRows>(
                acc, [&](int r) { return _mm512_load_si512(row[r].digits + i); },
                [&](int c) { return to_unsigned(_mm512_loadu_si512(w.at[c] + i)); });
        }
        if (i < k) {
            dot_step<kRows>(
                acc, [&](int r) { return _mm512_load_si512(row[r].digits + whole); },
                [&](int c) { return load_codes(w.at[c] + whole, w.end); });
        }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            store_sums(acc[r][0], acc[r][1], acc[r][2], acc[r][3], row[r].sums + at);
        }
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
    KEEP_SUMS_IN_REGISTERS static void tile(const uint8_t* panel, const HighUnits* first, const int8_t* lo,
                                            int64_t words, int32_t (*sums)[kColumns], Ahead& ahead) {
        __m512i acc[kRows][2];
        set_zero(acc);
        if (first != nullptr) {
            add_units(panel, *first, acc);
            times_256(acc);
        }
        for (int64_t w = 0; w < words; ++w, panel += kWordBytes * kColumns, lo += kWordBytes * kRows) {
            ahead.step();
            tile_step<kRows>(acc, panel, lo);
        }
        store_tile<kRows>(acc, sums);
    }

    template <int kRows>
    KEEP_SUMS_IN_REGISTERS static void tile_units(const uint8_t* panel, const HighUnits& units,
                                                  int32_t (*sums)[kColumns]) {
        __m512i acc[kRows][2];
        set_zero(acc);
        add_units(panel, units, acc);
        store_tile<kRows>(acc, sums);
    }

    // A row alone runs two chains of sums, or it would wait for the latency of each.
    template <int kRows>
    LLMINT8_INLINE static void add_units(const uint8_t* panel, const HighUnits& units,
                                         __m512i (&acc)[kRows][2]) {
        const auto* digits = static_cast<const int8_t*>(units.digits);
        const auto word = [&](int64_t u) { return panel + units.index[u] * (kWordBytes * kColumns); };
        int64_t u = 0;
        if constexpr (kRows == 1) {
            __m512i second[1][2];
            set_zero(second);
            for (; u + 2 <= units.count; u += 2, digits += 2 * kWordBytes) {
                tile_step<1>(acc, word(u), digits);
                tile_step<1>(second, word(u + 1), digits + kWordBytes);
            }
            acc[0][0] = _mm512_add_epi32(acc[0][0], second[0][0]);
            acc[0][1] = _mm512_add_epi32(acc[0][1], second[0][1]);
        }
        for (; u < units.count; ++u, digits += kWordBytes * kRows) tile_step<kRows>(acc, word(u), digits);
    }

    template <int kRows, int kSums>
    LLMINT8_INLINE static void set_zero(__m512i (&acc)[kRows][kSums]) {
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
            for (int c = 0; c < kSums; ++c) acc[r][c] = _mm512_setzero_si512();
        }
    }

    template <int kRows, int kSums>
    LLMINT8_INLINE static void times_256(__m512i (&acc)[kRows][kSums]) {
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
            for (int c = 0; c < kSums; ++c) acc[r][c] = _mm512_slli_epi32(acc[r][c], 8);
        }
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
