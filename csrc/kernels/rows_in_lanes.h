// 13 to 16 and 25 to 64 rows on AVX-512 VNNI: 16 of them lie in the lanes of a register, four digits each,
// and meet the weight as it lies in memory, a word of a column broadcast to all lanes. The weight is read
// once and never copied, which so few rows would not repay.
//
// vpdpbusd broadcasts its signed operand. Low digits are the unsigned one: 128 is added when they are stored,
// which the sum of a column's codes undoes. In slots, words of the weight are moved to the lanes of the rows
// that need them, and 128 is added to the weight, which the sum of a row's high digits undoes.
#pragma once

#include "kernels/lane_tiles.h"

namespace llmint8 {
namespace {

// Sums from [column][lane] to [row][column], less an offset of each column. high: null, or what is added 256
// times.
void store_rows(const int32_t (*sums)[kLanes], const int32_t* offsets, const int32_t (*high)[kLanes],
                int32_t (*rows)[kColumns]) {
    for (int half = 0; half < kColumns; half += kLanes) {
        __m512i v[kLanes];
        for (int c = 0; c < kLanes; ++c) {
            v[c] = _mm512_load_si512(sums[half + c]);
            if (high == nullptr) continue;
            v[c] = _mm512_add_epi32(v[c], _mm512_slli_epi32(_mm512_load_si512(high[half + c]), 8));
        }
        transpose(v);
        const __m512i offset = _mm512_load_si512(offsets + half);
        for (int r = 0; r < kLanes; ++r) _mm512_store_si512(rows[r] + half, _mm512_sub_epi32(v[r], offset));
    }
}

// The sums of a block, for the epilogue.
struct BlockSums {
    DigitSums take(int64_t r, const RowScale& scale) const {
        return {low[r], scale.has_high && !scale.joint ? high[r] : nullptr, 0, 0};
    }

    alignas(64) int32_t low[kLanes][kColumns], high[kLanes][kColumns];
};

// What 128 more in each code adds to the sums of slots, to be taken off.
void set_slot_offsets(const QuantizedRows& rows, const Block& block, int32_t (&first)[kLanes]) {
    for (int64_t r = 0; r < kLanes; ++r) {
        first[r] = r < block.rows ? -Avx512Vnni::kOffset * rows.row(block.begin + r).scale.hi_sum : 0;
    }
}

// The slots of all blocks, if they share them and their sums are joint. rows: may be null.
bool share_slots(const QuantizedRows* rows, SharedSlots& shared) {
    if (rows == nullptr) return false;
    const HighUnits& one = rows->block(0).units;
    const auto* digits = static_cast<const uint8_t*>(one.digits);
    shared = {{digits, 0}, one.index, one.count, {}};
    for (int64_t b = 0; b < rows->blocks(); ++b) {
        const Block& block = rows->block(b);
        if (block.high != High::kSlots || !rows->row(block.begin).scale.joint) return false;
        if (block.units.count != one.count) return false;
        const auto* other = static_cast<const uint8_t*>(block.units.digits);
        for (int64_t u = 0; u < one.count; ++u, other += kSlotBytes) {
            const uint16_t window = one.index[u];
            if ((window & kOnePlace) == 0 || block.units.index[u] != window) return false;
            const auto* slot = digits + u * kSlotBytes;
            if (word_of_slot(slot, window) != word_of_slot(other, window)) return false;
        }
        if (b == 1) shared.digits.stride = static_cast<const uint8_t*>(block.units.digits) - digits;
        set_slot_offsets(*rows, block, shared.first[b]);
    }
    return true;
}

// One tile of columns of a product.
class LaneProduct {
  public:
    // is_streamed: the columns after these are wanted next.
    LaneProduct(const Product& product, int64_t begin, int64_t end, bool is_streamed)
        : rows_(*product.rows),
          weight_(product, begin, end),
          words_(rows_.k() / kWordBytes),
          is_streamed_(is_streamed) {
        for (int c = 0; c < kColumns; ++c) {
            rest_[c] = last_word_[c];
            std::memcpy(last_word_[c], weight_.at[c] + words_ * kWordBytes,
                        static_cast<size_t>(rest_bytes()));
        }
    }

    // Of all blocks. slots: null, or those of the blocks if they share them.
    void multiply(const SharedSlots* slots, BlockSums* sums) {
        const int64_t blocks = rows_.blocks();
        const auto* low = static_cast<const uint8_t*>(rows_.block(0).lo);
        const auto* next = static_cast<const uint8_t*>(rows_.block(blocks > 1 ? 1 : 0).lo);
        multiply(blocks, {low, next - low}, slots);
        for (int64_t b = 0; b < blocks; ++b) {
            if (slots != nullptr) {
                store_rows(lanes_[b], offsets_, nullptr, sums[b].low);
            } else {
                finish(rows_.block(b), lanes_[b], sums[b]);
            }
        }
        for (int64_t b = 0; b < blocks; ++b) {
            const Block& block = rows_.block(b);
            if (block.high != High::kWhole) continue;
            multiply<1>({static_cast<const uint8_t*>(block.units.digits), 0}, nullptr);
            store_rows(lanes_[0], offsets_, nullptr, sums[b].high);
        }
    }

  private:
    // Of k after the last whole word.
    int64_t rest_bytes() const { return rows_.k() - words_ * kWordBytes; }

    void multiply(int64_t blocks, const LaneDigits& digits, const SharedSlots* slots) {
        switch (blocks) {
            case 1:
                return multiply<1>(digits, slots);
            case 2:
                return multiply<2>(digits, slots);
            case 3:
                return multiply<3>(digits, slots);
            default:
                return multiply<4>(digits, slots);
        }
    }

    // Tile by tile; the sums of the codes are taken when they are in the cache for the first time.
    template <int kBlocks>
    void multiply(const LaneDigits& digits, const SharedSlots* slots) {
        constexpr int kTile = tile_columns(kBlocks);
        const int64_t ahead = is_streamed_ ? stream_ahead(kTile * rows_.k()) : 0;
        const LaneDigits rest{digits.first + words_ * kLaneBytes, digits.stride};
        for (int at = 0; at < kColumns; at += kTile) {
            lane_tile<kBlocks>(weight_.at, at, digits, words_, ahead, false, lanes_);
            if (rest_bytes() > 0) lane_tile<kBlocks>(rest_, at, rest, 1, 0, true, lanes_);
            if (slots != nullptr) add_shared_slots<kBlocks>(weight_.at, at, *slots, lanes_);
            if (!has_offsets_) digit_offsets<kTile>(weight_.at + at, rows_.k(), offsets_ + at);
        }
        has_offsets_ = true;
    }

    // The low sums of a block, with those of its slots.
    void finish(const Block& block, const int32_t (*low)[kLanes], BlockSums& sums) const {
        if (block.high != High::kSlots) return store_rows(low, offsets_, nullptr, sums.low);
        static constexpr int32_t kNoOffsets alignas(64)[kColumns] = {};
        alignas(64) int32_t high[kColumns][kLanes];
        alignas(64) int32_t first[kLanes];
        set_slot_offsets(rows_, block, first);
        for (int at = 0; at < kColumns; at += kSlotTile)
            slots_tile(weight_.at, at, block.units, rows_.k(), _mm512_load_si512(first), high);
        const bool joint = rows_.row(block.begin).scale.joint;
        store_rows(low, offsets_, joint ? high : nullptr, sums.low);
        if (!joint) store_rows(high, kNoOffsets, nullptr, sums.high);
    }

    const QuantizedRows& rows_;
    const WeightRows<kColumns> weight_;
    const int64_t words_;  // whole ones of k
    const bool is_streamed_;
    bool has_offsets_ = false;
    int8_t last_word_[kColumns][kWordBytes] = {};
    const int8_t* rest_[kColumns];
    alignas(64) int32_t offsets_[kColumns];
    alignas(64) LaneSums lanes_;
};

void rows_in_lanes(const LinearCall& call, int64_t begin, int64_t end) {
    BlockSums codes[kMostBlocks], second[kMostBlocks];
    SharedSlots slots, more;
    const SharedSlots* const shared = share_slots(call.rows, slots) ? &slots : nullptr;
    const SharedSlots* const more_shared = share_slots(call.outlier_rows, more) ? &more : nullptr;
    for (int64_t n = begin; n < end; n += kColumns) {
        const int64_t last = n + kColumns < end ? n + kColumns : end;
        expect_second_digits(call, last, last + kColumns);
        const ColumnScales<kColumns> columns(call, n, last);
        LaneProduct(call.codes(), n, last, true).multiply(shared, codes);
        if (call.p > 0) LaneProduct(call.second_digits(), n, last, false).multiply(more_shared, second);
        for (int64_t b = 0; b < call.rows->blocks(); ++b) {
            const Block& block = call.rows->block(b);
            finish_rows<Avx512Vnni>(call, columns, n, last, block.begin, block.rows, codes[b], second[b]);
        }
    }
}

}  // namespace
}  // namespace llmint8
