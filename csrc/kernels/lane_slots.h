// High digits of rows that lie in the lanes of a register, in slots.
#pragma once

#include "kernels/avx512vnni.h"

namespace llmint8 {
namespace {

constexpr int kLanes = 16;
constexpr int64_t kLaneBytes =
    kLanes * kWordBytes;  // a word of each row; a slot has such words and their places
constexpr int64_t kSlotBytes = 2 * kLaneBytes;
constexpr int64_t kWindowWords = kSlotWindow / kWordBytes;
static_assert(kWindowWords == 32, "the words of a window are the bits of a mask");

// The slots that one window of a block needs.
struct Window {
    // masks: of each row. words: those that k fills.
    Window(const uint32_t* masks, int64_t rows, int64_t stride, int64_t words) {
        int most = 0;
        for (int64_t r = 0; r < rows; ++r) {
            const int count = __builtin_popcount(masks[r * stride]);
            any |= masks[r * stride];
            most = count > most ? count : most;
        }
        const uint32_t whole = words >= kWindowWords ? ~0u : words > 0 ? (1u << words) - 1 : 0;
        has_own_slots = __builtin_popcount(any) <= most + kMore && (any & ~whole) == 0;
        slots = has_own_slots ? __builtin_popcount(any) : most;
    }

    // Slots that may be more of their own kind: no word of the weight must be moved to where it is needed.
    static constexpr int kMore = 2;

    uint32_t any = 0;    // words that are not zero in some row
    bool has_own_slots;  // each of them, one place for all rows
    int slots;
};

// See DigitLayout. Slots must cost less than the whole product, where a word costs half as much.
bool store_slots(const QuantizedRows& rows, const int8_t* hi, uint8_t* scratch, uint8_t* to, Block& block) {
    const int64_t padded_k = rows.padded_k(), windows = (padded_k + kSlotWindow - 1) / kSlotWindow;
    auto* masks = reinterpret_cast<uint32_t*>(scratch);  // [row][window]
    for (int64_t r = 0; r < block.rows; ++r) {
        uint32_t* own = masks + r * windows;
        if (rows.row(block.begin + r).scale.has_high) {
            Avx512Vnni::mark_words(hi + r * padded_k, padded_k, own);
        } else {
            for (int64_t w = 0; w < windows; ++w) own[w] = 0;
        }
    }
    const auto window = [&](int64_t w) {
        return Window(masks + w, block.rows, windows, rows.k() / kWordBytes - w * kWindowWords);
    };
    int64_t count = 0;
    for (int64_t w = 0; w < windows; ++w) count += window(w).slots;
    // They and their list must also fit where the whole digits would lie.
    if (9 * count >= padded_k) return false;
    auto* index = reinterpret_cast<uint16_t*>(to + count * kSlotBytes);
    block.high = High::kSlots;
    block.units = {to, index, count};
    std::memset(to, 0, static_cast<size_t>(count * kSlotBytes));
    for (int64_t w = 0; w < windows; ++w) {
        const Window here = window(w);
        const bool own = here.has_own_slots;
        for (int64_t r = 0; r < block.rows; ++r) {
            const int8_t* words = hi + r * padded_k + w * kSlotWindow;
            int64_t slot = 0;
            for (uint32_t mask = masks[r * windows + w]; mask != 0; mask &= mask - 1, ++slot) {
                const int32_t place = __builtin_ctz(mask);
                if (own) slot = __builtin_popcount(here.any & ((1u << place) - 1));
                uint8_t* at = to + slot * kSlotBytes + r * kWordBytes;
                std::memcpy(at, words + place * kWordBytes, kWordBytes);
                std::memcpy(at + kLaneBytes, &place, sizeof place);
            }
        }
        uint32_t rest = here.any;
        for (int slot = 0; slot < here.slots; ++slot, to += kSlotBytes, rest &= rest - 1) {
            *index++ = static_cast<uint16_t>(own ? w | kOnePlace : w);
            const int32_t place = own ? __builtin_ctz(rest) : 0;
            if (own) std::memcpy(to + kLaneBytes, &place, sizeof place);  // the first row may have none
        }
    }
    return true;
}

}  // namespace
}  // namespace llmint8
