// Microkernels for 128-bit ARM vectors, written once over the instruction that multiplies and sums.
//
// An Ops provides Sum (partial sums of four columns, or of one dot product), zero, add, add_lane (the second
// factor is one word of it, for all columns), times_256, total (four sums), and how many rows fit the 32
// registers.
#pragma once

#include <arm_neon.h>

#include "kernels/regimes.h"

namespace llmint8 {
namespace {

// 16 codes of a weight that ends at `end`; zeros past it.
inline int8x16_t load_codes(const int8_t* from, const int8_t* end) {
    if (end - from >= 16) return vld1q_s8(from);
    int8_t tail[16] = {};
    std::memcpy(tail, from, static_cast<size_t>(end - from));
    return vld1q_s8(tail);
}

// The four digits of a word, for all columns.
inline int8x16_t broadcast_word(const int8_t* digits) {
    int32_t four;
    std::memcpy(&four, digits, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

// Four registers of 4 partial sums to four sums.
inline void store_sums(const int32x4_t (&acc)[4], int32_t* sums) {
    vst1q_s32(sums, vpaddq_s32(vpaddq_s32(acc[0], acc[1]), vpaddq_s32(acc[2], acc[3])));
}

// 4 rows of 4 words to 4 columns, in place.
inline void transpose(int8x16_t (&v)[4]) {
    int64x2_t t[4];
    for (int i = 0; i < 2; ++i) {
        const int32x4_t a = vreinterpretq_s32_s8(v[2 * i]), b = vreinterpretq_s32_s8(v[2 * i + 1]);
        t[i] = vreinterpretq_s64_s32(vtrn1q_s32(a, b));
        t[2 + i] = vreinterpretq_s64_s32(vtrn2q_s32(a, b));
    }
    for (int i = 0; i < 2; ++i) {
        v[i] = vreinterpretq_s8_s64(vtrn1q_s64(t[2 * i], t[2 * i + 1]));
        v[2 + i] = vreinterpretq_s8_s64(vtrn2q_s64(t[2 * i], t[2 * i + 1]));
    }
}

template <class Ops>
struct Neon : WordBlocks<Neon<Ops>> {
    using Digit = int8_t;
    using Panel = int8_t;
    using Sum = typename Ops::Sum;
    static constexpr int kColumns = 12;  // a panel: three registers of 4 columns
    static constexpr int kMaxRows = Ops::kTileRows;
    static constexpr int kDotRows = Ops::kDotRows;
    static constexpr int kDotColumns = 4;  // as many as store_sums takes
    static constexpr int64_t kUnit = 16;
    static constexpr int64_t kFewRows = 8;
    static constexpr int32_t kOffset = 0;

    // 16 digits of kRows rows, times the same codes of the four columns.
    template <int kRows, class Digits, class Codes>
    static void dot_step(Sum (&acc)[kRows][4], const Digits& digits_of, const Codes& codes_of) {
        int8x16_t digits[kRows];
        for (int r = 0; r < kRows; ++r) digits[r] = vld1q_s8(digits_of(r));
        for (int c = 0; c < kDotColumns; ++c) {
            const int8x16_t codes = codes_of(c);
            for (int r = 0; r < kRows; ++r) acc[r][c] = Ops::add(acc[r][c], codes, digits[r]);
        }
    }

    // One row alone runs two chains of sums along k, or it would wait for the latency of each.
    template <int kRows>
    static void dot(const DotColumns<Neon>& w, const DotRow<Neon>* row, int64_t k, int64_t at) {
        constexpr int kChains = kRows == 1 ? 2 : 1;
        Sum acc[kChains][kRows][4];
        for (auto& chain : acc) set_zero(chain);
        int64_t i = 0;
        for (; i + 16 * kChains <= k; i += 16 * kChains) {
            for (int chain = 0; chain < kChains; ++chain) {
                const int64_t j = i + 16 * chain;
                dot_step<kRows>(
                    acc[chain], [&](int r) { return row[r].digits + j; },
                    [&](int c) { return vld1q_s8(w.at[c] + j); });
            }
        }
        for (; i < k; i += 16) {
            dot_step<kRows>(
                acc[0], [&](int r) { return row[r].digits + i; },
                [&](int c) { return load_codes(w.at[c] + i, w.end); });
        }
        for (int r = 0; r < kRows; ++r) {
            int32x4_t total[4];
            for (int c = 0; c < kDotColumns; ++c) {
                total[c] = Ops::total(acc[0][r][c]);
                if (kChains == 2) total[c] = vaddq_s32(total[c], Ops::total(acc[kChains - 1][r][c]));
            }
            store_sums(total, row[r].sums + at);
        }
    }

    static void dot_units(const DotColumns<Neon>& w, const HighUnits& units, int32_t* sums) {
        Sum acc[1][4];
        set_zero(acc);
        const int8_t* digits = static_cast<const int8_t*>(units.digits);
        for (int64_t u = 0; u < units.count; ++u) {
            dot_step<1>(
                acc, [&](int) { return digits + u * kUnit; },
                [&](int c) { return load_codes(w.at[c] + units.index[u] * kUnit, w.end); });
        }
        int32x4_t total[4];
        for (int c = 0; c < kDotColumns; ++c) total[c] = Ops::total(acc[0][c]);
        store_sums(total, sums);
    }

    // Weight rows [begin, end) to a panel [padded_k / 4][12][4].
    static void pack_panel(const Product& product, int64_t begin, int64_t end, int8_t* panel) {
        const int64_t k = product.rows->k();
        for (int part = 0; part < kColumns; part += 4) {
            const WeightRows<4> weight(product, begin + part, end);
            for (int64_t i = 0; i < k; i += 16) {
                int8x16_t v[4];
                for (int c = 0; c < 4; ++c) v[c] = load_codes(weight.at[c] + i, weight.end);
                transpose(v);
                for (int w = 0; w < 4; ++w) {
                    vst1q_s8(panel + i * kColumns + (w * kColumns + part) * kWordBytes, v[w]);
                }
            }
        }
    }

    template <int kRows>
    static void tile(const int8_t* panel, const HighUnits* first, const int8_t* lo, int64_t words,
                     int32_t (*sums)[kColumns], Ahead& ahead) {
        Sum acc[kRows][3];
        set_zero(acc);
        if (first != nullptr) {
            add_units(panel, *first, acc);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) {
                for (int c = 0; c < 3; ++c) acc[r][c] = Ops::times_256(acc[r][c]);
            }
        }
        for (int64_t w = 0; w < words; ++w, panel += kWordBytes * kColumns, lo += kWordBytes * kRows) {
            ahead.step();
            tile_step<kRows>(acc, panel, lo);
        }
        store_tile<kRows>(acc, sums);
    }

    template <int kRows>
    static void tile_units(const int8_t* panel, const HighUnits& units, int32_t (*sums)[kColumns]) {
        Sum acc[kRows][3];
        set_zero(acc);
        add_units(panel, units, acc);
        store_tile<kRows>(acc, sums);
    }

    template <int kRows>
    LLMINT8_INLINE static void add_units(const int8_t* panel, const HighUnits& units, Sum (&acc)[kRows][3]) {
        const auto* digits = static_cast<const int8_t*>(units.digits);
        for (int64_t u = 0; u < units.count; ++u, digits += kWordBytes * kRows) {
            tile_step<kRows>(acc, panel + units.index[u] * (kWordBytes * kColumns), digits);
        }
    }

    // A word of kRows rows times that word of the 12 columns.
    template <int kRows>
    static void tile_step(Sum (&acc)[kRows][3], const int8_t* panel, const int8_t* digits) {
        const int8x16_t codes[3] = {vld1q_s8(panel), vld1q_s8(panel + 16), vld1q_s8(panel + 32)};
#pragma GCC unroll 2
        for (int r = 0; r + 4 <= kRows; r += 4) {  // four rows' words in one register
            const int8x16_t words = vld1q_s8(digits + kWordBytes * r);
            add_lane<0>(acc[r], codes, words);
            add_lane<1>(acc[r + 1], codes, words);
            add_lane<2>(acc[r + 2], codes, words);
            add_lane<3>(acc[r + 3], codes, words);
        }
#pragma GCC unroll 3
        for (int r = kRows / 4 * 4; r < kRows; ++r) {
            const int8x16_t word = broadcast_word(digits + kWordBytes * r);
            for (int c = 0; c < 3; ++c) acc[r][c] = Ops::add(acc[r][c], codes[c], word);
        }
    }

    template <int kLane>
    static void add_lane(Sum (&acc)[3], const int8x16_t (&codes)[3], int8x16_t words) {
        for (int c = 0; c < 3; ++c) acc[c] = Ops::template add_lane<kLane>(acc[c], codes[c], words);
    }

    template <int kRows>
    static void store_tile(const Sum (&acc)[kRows][3], int32_t (*sums)[kColumns]) {
#pragma GCC unroll 8  // a loop would make GCC keep the sums in memory from the start
        for (int r = 0; r < kRows; ++r) {
            for (int c = 0; c < 3; ++c) vst1q_s32(sums[r] + 4 * c, Ops::total(acc[r][c]));
        }
    }

    template <int kRows, int kSums>
    static void set_zero(Sum (&acc)[kRows][kSums]) {
        for (auto& row : acc) {
            for (auto& sum : row) sum = Ops::zero();
        }
    }
};

}  // namespace
}  // namespace llmint8
