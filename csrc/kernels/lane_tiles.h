// The microkernels of rows that lie in the lanes of a register (rows_in_lanes.h).
#pragma once

#include "kernels/lane_slots.h"

namespace llmint8 {
namespace {

constexpr int kMostBlocks = 4;  // of 16 rows, which share a broadcast
constexpr int kColumns = Avx512Vnni::kColumns;

// Other few rows would leave too many lanes empty; many repay the panels, whose outliers cost less.
bool lie_in_lanes(int64_t m) {
    const bool fill_one = m >= 13 && m <= kLanes, fill_more = m > Avx512Vnni::kFewRows;
    return fill_one || (fill_more && m <= kMostBlocks * kLanes);
}

// Columns whose sums with some blocks stay in registers.
constexpr int tile_columns(int blocks) {
    return blocks <= 2 ? 8 : 4;
}

DigitLayout lanes_layout() {
    return {kLanes, 1,      Avx512Vnni::kUnit, kWordBytes, kNever, kNever, nullptr,
            true,   kLanes, store_slots};  // without lists
}

// Sums of the blocks with 32 columns.
using LaneSums = int32_t[kMostBlocks][kColumns][kLanes];

// Low or whole high digits, [word][lane][4].
struct LaneDigits {
    const uint8_t* first;
    int64_t stride;  // bytes from one block to the next
};

// Where all rows of all blocks have high digits in the same words: the slots of the blocks, and what their
// sums start from.
struct SharedSlots {
    LaneDigits digits;
    const uint16_t* index;
    int64_t count;
    alignas(64) int32_t first[kMostBlocks][kLanes];
};

// Of a slot that has one place for all rows: where its words of k begin.
inline int64_t word_of_slot(const uint8_t* slot, uint16_t window) {
    int32_t place;
    std::memcpy(&place, slot + kLaneBytes, sizeof place);
    return (window - kOnePlace) * kSlotWindow + place * kWordBytes;
}

// Sums of kBlocks blocks with the columns from `at` on, set or added to. ahead: bytes between what is read
// and what is fetched.
template <int kBlocks>
KEEP_SUMS_IN_REGISTERS void lane_tile(const int8_t* const* columns, int at, LaneDigits digits, int64_t words,
                                      int64_t ahead, bool add, LaneSums& sums) {
    constexpr int kTile = tile_columns(kBlocks);
    constexpr int64_t kStep = kPadding / kWordBytes;
    __m512i acc[kTile][kBlocks];
    const int8_t* column[kTile];
#pragma GCC unroll 8
    for (int c = 0; c < kTile; ++c) {
#pragma GCC unroll 4
        for (int b = 0; b < kBlocks; ++b)
            acc[c][b] = add ? _mm512_load_si512(sums[b][at + c]) : _mm512_setzero_si512();
        column[c] = columns[at + c];
    }
    const int8_t* next = column[0] + ahead;
    const uint8_t* x = digits.first;
    for (int64_t step = 0; step < words; step += kStep, next += kTile * kPadding) {
        for (int line = 0; line < kTile; ++line) __builtin_prefetch(next + line * kPadding, 0, 2);
        const int64_t end = step + kStep < words ? step + kStep : words;
        for (int64_t w = step; w < end; ++w, x += kLaneBytes) {
            __m512i rows[kBlocks];
#pragma GCC unroll 4
            for (int b = 0; b < kBlocks; ++b) rows[b] = _mm512_load_si512(x + b * digits.stride);
#pragma GCC unroll 8
            for (int c = 0; c < kTile; ++c) {
                const __m512i codes = broadcast_word(column[c] + w * kWordBytes);
#pragma GCC unroll 4
                for (int b = 0; b < kBlocks; ++b) acc[c][b] = _mm512_dpbusd_epi32(acc[c][b], rows[b], codes);
            }
        }
    }
#pragma GCC unroll 8
    for (int c = 0; c < kTile; ++c) {
#pragma GCC unroll 4
        for (int b = 0; b < kBlocks; ++b) _mm512_store_si512(sums[b][at + c], acc[c][b]);
    }
}

// 256 times the sums of shared slots, added to those of the low digits.
template <int kBlocks>
KEEP_SUMS_IN_REGISTERS void add_shared_slots(const int8_t* const* columns, int at, const SharedSlots& slots,
                                             LaneSums& sums) {
    constexpr int kTile = tile_columns(kBlocks);
    __m512i acc[kTile][kBlocks];
    const int8_t* column[kTile];
#pragma GCC unroll 8
    for (int c = 0; c < kTile; ++c) {
#pragma GCC unroll 4
        for (int b = 0; b < kBlocks; ++b) acc[c][b] = _mm512_load_si512(slots.first[b]);
        column[c] = columns[at + c];
    }
    const uint8_t* slot = slots.digits.first;
    for (int64_t u = 0; u < slots.count; ++u, slot += kSlotBytes) {
        const int64_t from = word_of_slot(slot, slots.index[u]);
        __m512i rows[kBlocks];
#pragma GCC unroll 4
        for (int b = 0; b < kBlocks; ++b) rows[b] = _mm512_load_si512(slot + b * slots.digits.stride);
#pragma GCC unroll 8
        for (int c = 0; c < kTile; ++c) {
            const __m512i codes = to_unsigned(broadcast_word(column[c] + from));
#pragma GCC unroll 4
            for (int b = 0; b < kBlocks; ++b) acc[c][b] = _mm512_dpbusd_epi32(acc[c][b], codes, rows[b]);
        }
    }
#pragma GCC unroll 8
    for (int c = 0; c < kTile; ++c) {
#pragma GCC unroll 4
        for (int b = 0; b < kBlocks; ++b) {
            int32_t* to = sums[b][at + c];
            _mm512_store_si512(to, _mm512_add_epi32(_mm512_load_si512(to), _mm512_slli_epi32(acc[c][b], 8)));
        }
    }
}

constexpr int kSlotTile = 8;  // columns that are multiplied with slots together

// Sums of the slots of a block with the columns from `at` on, of k codes. first: what they start from.
KEEP_SUMS_IN_REGISTERS void slots_tile(const int8_t* const* columns, int at, const HighUnits& slots,
                                       int64_t k, __m512i first, int32_t (*sums)[kLanes]) {
    __m512i acc[kSlotTile], left[kSlotTile], right[kSlotTile];
#pragma GCC unroll 8
    for (int c = 0; c < kSlotTile; ++c) acc[c] = first;
    const auto* digits = static_cast<const uint8_t*>(slots.digits);
    for (int64_t u = 0; u < slots.count;) {
        const uint16_t window = slots.index[u];
        if ((window & kOnePlace) != 0) {
            const int64_t from = word_of_slot(digits, window);
            const __m512i words = _mm512_load_si512(digits);
#pragma GCC unroll 8
            for (int c = 0; c < kSlotTile; ++c) {
                const __m512i codes = to_unsigned(broadcast_word(columns[at + c] + from));
                acc[c] = _mm512_dpbusd_epi32(acc[c], codes, words);
            }
            ++u, digits += kSlotBytes;
            continue;
        }
        const int64_t from = window * kSlotWindow, rest = k - from;
        if (rest >= kSlotWindow) {  // said apart: asking each load what is left takes a twentieth longer
#pragma GCC unroll 8
            for (int c = 0; c < kSlotTile; ++c) {
                left[c] = to_unsigned(_mm512_loadu_si512(columns[at + c] + from));
                right[c] = to_unsigned(_mm512_loadu_si512(columns[at + c] + from + 64));
            }
        } else {
#pragma GCC unroll 8
            for (int c = 0; c < kSlotTile; ++c) {
                left[c] = to_unsigned(load_part(columns[at + c] + from, rest));
                right[c] = to_unsigned(load_part(columns[at + c] + from + 64, rest - 64));
            }
        }
        for (; u < slots.count && slots.index[u] == window; ++u, digits += kSlotBytes) {
            const __m512i words = _mm512_load_si512(digits), places = _mm512_load_si512(digits + kLaneBytes);
#pragma GCC unroll 8
            for (int c = 0; c < kSlotTile; ++c) {
                const __m512i codes = _mm512_permutex2var_epi32(left[c], places, right[c]);
                acc[c] = _mm512_dpbusd_epi32(acc[c], codes, words);
            }
        }
    }
#pragma GCC unroll 8
    for (int c = 0; c < kSlotTile; ++c) _mm512_store_si512(sums[at + c], acc[c]);
}

// What 128 more in each digit adds to the sums of kCount columns, four or eight, of `bytes` codes.
template <int kCount>
void digit_offsets(const int8_t* const* columns, int64_t bytes, int32_t* offsets) {
    constexpr int kChains = 8 / kCount;  // eight sums, or each would wait for itself
    const __m512i all = _mm512_set1_epi8(static_cast<char>(128));
    __m512i acc[kChains][kCount];
#pragma GCC unroll 2
    for (int chain = 0; chain < kChains; ++chain) {
#pragma GCC unroll 8
        for (int c = 0; c < kCount; ++c) acc[chain][c] = _mm512_setzero_si512();
    }
    const auto add = [&](int chain, int c, __m512i codes) {
        acc[chain][c] = _mm512_dpbusd_epi32(acc[chain][c], all, codes);
    };
    int64_t i = 0;
    for (; i + 64 * kChains <= bytes; i += 64 * kChains) {
#pragma GCC unroll 2
        for (int chain = 0; chain < kChains; ++chain) {
#pragma GCC unroll 8
            for (int c = 0; c < kCount; ++c) add(chain, c, _mm512_loadu_si512(columns[c] + i + 64 * chain));
        }
    }
    for (; i < bytes; i += 64) {
#pragma GCC unroll 8
        for (int c = 0; c < kCount; ++c) add(0, c, load_part(columns[c] + i, bytes - i));
    }
#pragma GCC unroll 8
    for (int c = 0; kChains == 2 && c < kCount; ++c)
        acc[0][c] = _mm512_add_epi32(acc[0][c], acc[kChains - 1][c]);
#pragma GCC unroll 2
    for (int c = 0; c < kCount; c += 4)
        store_sums(acc[0][c], acc[0][c + 1], acc[0][c + 2], acc[0][c + 3], offsets + c);
}

}  // namespace
}  // namespace llmint8
