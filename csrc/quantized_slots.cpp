// High digits of rows that lie in the lanes of a register, in slots.
#include <algorithm>
#include <cstring>

#include "quantized_rows.h"

namespace llmint8 {

namespace {

constexpr int64_t kWords = kSlotWindow / kWordBytes;

// Which words of up to a window are not zero, a bit each. Most are zero.
uint32_t nonzero_words(const int8_t* digits, int64_t bytes) {
    const auto two_words = [digits](int64_t i) {
        uint64_t two;
        std::memcpy(&two, digits + i, sizeof two);
        return two;
    };
    uint64_t any = 0;
    for (int64_t i = 0; i < bytes; i += 2 * kWordBytes) any |= two_words(i);
    if (any == 0) return 0;
    uint32_t mask = 0;
    for (int64_t i = 0; i < bytes; i += 2 * kWordBytes) {
        const uint64_t two = two_words(i);
        if (two == 0) continue;
        const uint32_t first = static_cast<uint32_t>(two) != 0, second = two >> 32 != 0;
        mask |= (first | second << 1) << (i / kWordBytes);
    }
    return mask;
}

}  // namespace

// Whether slots cost less than the whole product, where a word costs half as much. scratch: 2 * padded_k
// bytes.
bool QuantizedRows::store_slots(Block& block, const int8_t* hi, uint8_t* scratch, uint8_t* to) const {
    const int64_t windows = (padded_k_ + kSlotWindow - 1) / kSlotWindow, lanes = layout_.lanes;
    auto* masks = reinterpret_cast<uint32_t*>(scratch);                               // [row][window]
    uint8_t* most = scratch + lanes * windows * static_cast<int64_t>(sizeof *masks);  // [window]
    std::memset(most, 0, static_cast<size_t>(windows));
    for (int64_t r = 0; r < block.rows; ++r) {
        const bool any = row_[block.begin + r].scale.has_high;
        for (int64_t w = 0; w < windows; ++w) {
            const int64_t from = w * kSlotWindow;
            const uint32_t mask =
                any ? nonzero_words(hi + r * padded_k_ + from, std::min(kSlotWindow, padded_k_ - from)) : 0;
            masks[r * windows + w] = mask;
            if (mask != 0) most[w] = std::max(most[w], static_cast<uint8_t>(__builtin_popcount(mask)));
        }
    }
    int64_t count = 0;
    for (int64_t w = 0; w < windows; ++w) count += most[w];
    // They and their list must also fit where the whole digits would lie.
    if (9 * count >= padded_k_) return false;
    const int64_t slot_bytes = 2 * lanes * kWordBytes;
    auto* index = reinterpret_cast<uint16_t*>(to + count * slot_bytes);
    block.high = High::kSlots;
    block.units = {to, index, count};
    std::memset(to, 0, static_cast<size_t>(count * slot_bytes));
    for (int64_t w = 0; w < windows; ++w) {
        uint32_t places[kWords] = {};  // of each slot, a bit each
        for (int64_t r = 0; r < block.rows; ++r) {
            int64_t slot = 0;
            for (uint32_t mask = masks[r * windows + w]; mask != 0; mask &= mask - 1, ++slot) {
                const int32_t place = __builtin_ctz(mask);
                uint8_t* at = to + slot * slot_bytes + r * kWordBytes;
                std::memcpy(at, hi + r * padded_k_ + w * kSlotWindow + place * kWordBytes, kWordBytes);
                std::memcpy(at + lanes * kWordBytes, &place, sizeof place);
                places[slot] |= 1u << place;
            }
        }
        for (int64_t slot = 0; slot < most[w]; ++slot, to += slot_bytes) {
            *index = static_cast<uint16_t>(w);
            const int32_t place = __builtin_ctz(places[slot]);
            if (places[slot] == 1u << place && w * kSlotWindow + (place + 1) * kWordBytes <= k_) {
                *index |= kOnePlace;
                std::memcpy(to + lanes * kWordBytes, &place,
                            sizeof place);  // the first row may have had none
            }
            ++index;
        }
    }
    return true;
}

}  // namespace llmint8
