// Attention in bfloat16 on AMX, whose products are summed in the order of docs/numerics.md, "Decoder".
// Internal linkage, as in float_bits.h and for the same reason.
#pragma once

#include "kernels/amx_tiles.h"
#include "kernels/decoder_attention.h"

namespace llmint8 {
namespace {

constexpr int64_t kFewestTileRows = 8;          // fewer would leave most of a tile empty
constexpr int64_t kValueKeys = 8 * kPairBlock;  // whose values are packed together: they stay in a cache

// The numbers of the registers, as in amx_tiles.h, all of 16 rows of 64 bytes.
class FloatTiles {
  public:
    FloatTiles() {
        TileConfig config;
        for (int tile = 0; tile < 8; ++tile) config.set(tile, kTileRows, kStepBytes);
        config.load();
    }
    FloatTiles(const FloatTiles&) = delete;
    FloatTiles& operator=(const FloatTiles&) = delete;
    ~FloatTiles() { _tile_release(); }

    // Sums of 16 or 32 rows and 32 columns, floats `stride` apart.
    void clear() const {
        _tile_zero(UPPER_LEFT);
        _tile_zero(UPPER_RIGHT);
        _tile_zero(LOWER_LEFT);
        _tile_zero(LOWER_RIGHT);
    }

    void load(const float* sums, int64_t stride, bool lower) const {
        _tile_loadd(UPPER_LEFT, sums, stride * 4);
        _tile_loadd(UPPER_RIGHT, sums + kTileRows, stride * 4);
        if (!lower) return;
        _tile_loadd(LOWER_LEFT, sums + kTileRows * stride, stride * 4);
        _tile_loadd(LOWER_RIGHT, sums + kTileRows * (stride + 1), stride * 4);
    }

    void store(float* sums, int64_t stride, bool lower) const {
        _tile_stored(UPPER_LEFT, sums, stride * 4);
        _tile_stored(UPPER_RIGHT, sums + kTileRows, stride * 4);
        if (!lower) return;
        _tile_stored(LOWER_LEFT, sums + kTileRows * stride, stride * 4);
        _tile_stored(LOWER_RIGHT, sums + kTileRows * (stride + 1), stride * 4);
    }

    // Rows [row][32] of bfloat16, `stride` apart, times two tiles of pairs, [pair][16][2].
    LLMINT8_INLINE void add(const uint16_t* rows, int64_t stride, const void* left, const void* right,
                            bool lower) const {
        _tile_loadd(LEFT, left, kStepBytes);
        _tile_loadd(RIGHT, right, kStepBytes);
        _tile_loadd(UPPER, rows, stride * 2);
        _tile_dpbf16ps(UPPER_LEFT, UPPER, LEFT);
        _tile_dpbf16ps(UPPER_RIGHT, UPPER, RIGHT);
        if (!lower) return;
        _tile_loadd(LOWER, rows + kTileRows * stride, stride * 2);
        _tile_dpbf16ps(LOWER_LEFT, LOWER, LEFT);
        _tile_dpbf16ps(LOWER_RIGHT, LOWER, RIGHT);
    }
};

// Bits of two bfloat16, specks as zeros.
inline uint32_t pair_without_specks(uint32_t pair) {
    const float low = without_speck(from_bits(pair << 16)),
                high = without_speck(from_bits(pair & 0xffff0000u));
    return to_bits(low) >> 16 | to_bits(high);
}

int64_t tile_attention_bytes(int64_t rows, int64_t head_dim, int64_t keys) {
    const int64_t d = round_up(head_dim, kPairBlock), all_rows = pad_floats(rows);
    const int64_t halves = all_rows * (d + most_scores(keys)) + kValueKeys * d;
    return round_up(attention_bytes(rows, head_dim, keys), 64) +
           halves * static_cast<int64_t>(sizeof(uint16_t));
}

class TileAttention : private Attention {
  public:
    TileAttention(const AttentionTask& task, void* scratch) : Attention(task, scratch) {
        values_ = reinterpret_cast<uint32_t*>(scores_ + all_rows_ * stride_);
        query_halves_ = reinterpret_cast<uint16_t*>(values_ + kValueKeys / 2 * d_);
        weights_ = query_halves_ + all_rows_ * d_;
    }

    void run() {
        pack_queries();
        for (int64_t key = begin_; key < end_; key += kPairBlock) score_tiles(key);
        weigh<Bfloat16>(weights_);
        for (int64_t key = begin_; key < end_; key += kValueKeys) {
            const int64_t end = smaller(end_, key + kValueKeys);
            if (pack_values(key, end)) {
                mix_tiles(key, end);
                continue;
            }
            for (int64_t row = 0; row < rows_; ++row) {
                widen(weights_ + row * stride_ + key - begin_, LLMINT8_BFLOAT16, end - key, scores(row, key));
            }
            for (int64_t block = key; block < end; block += kPairBlock) mix<Bfloat16>(block);
        }
        finish<Bfloat16>();
    }

  private:
    void pack_queries() {
        for_heads([&](const void* query, int64_t row) {
            const uint16_t* from = static_cast<const uint16_t*>(query);
            uint16_t* to = query_halves_ + row * d_;
            for (int64_t head = 0; head < task_.heads; ++head, from += task_.head_dim, to += d_) {
                for (int64_t i = 0; i < task_.head_dim; ++i) {
                    to[i] = static_cast<uint16_t>(to_bits(without_speck(bfloat_to_float(from[i]))) >> 16);
                }
                for (int64_t i = task_.head_dim; i < d_; ++i) to[i] = 0;
            }
        });
    }

    // Scores of all rows that see one of 32 keys, and of those that share a tile with them.
    void score_tiles(int64_t key) {
        const RowRange rows = rows_that_see(key, key + kPairBlock);
        if (rows.begin == rows.end) return;
        float* const right = pairs_ + d_ / 2 * kLanes;
        pack_keys(key, pairs_);
        pack_keys(key + kLanes, right);
        finish_writing(pairs_);
        for (int64_t row = rows.begin / kTileRows * kTileRows; row < rows.end; row += 2 * kTileRows) {
            const bool lower = row + kTileRows < rows.end;
            tiles_.clear();
            for (int64_t i = 0; i < d_; i += kPairBlock) {
                tiles_.add(query_halves_ + row * d_ + i, d_, pairs_ + i / 2 * kLanes, right + i / 2 * kLanes,
                           lower);
            }
            tiles_.store(scores(row, key), stride_, lower);
        }
    }

    // Keys [key, key + 16) as pairs, [d_ / 2][16][2].
    void pack_keys(int64_t key, float* to) {
        const int64_t count = larger(0, smaller(kLanes, end_ - key)), pairs = d_ / 2;
        transpose_sixteen(keys_.gather(task_.key, key, key + count, d_, staged_), d_ * 2, count, pairs, to);
        for (int64_t i = 0; i < pairs * kLanes; ++i) to[i] = from_bits(pair_without_specks(to_bits(to[i])));
    }

    // Values [begin, end) as pairs of keys, [block][d_ / 16][16][16][2]. Returns whether all rows may take
    // them: whether they are finite where a row does not see them all.
    bool pack_values(int64_t begin, int64_t end) {
        uint32_t largest[kLanes] = {};
        uint32_t* to = values_;
        for (int64_t key = begin; key < end; key += kPairBlock, to += kPairBlock / 2 * d_) {
            const int64_t count = smaller(kPairBlock, end - key);
            const auto* rows =
                static_cast<const uint32_t*>(keys_.gather(task_.value, key, key + count, d_, staged_));
            for (int64_t pair = 0; pair < kPairBlock / 2; ++pair) {
                pack_pair(rows + pair * d_, count - 2 * pair, to + pair * kLanes, largest);
            }
        }
        for (const uint32_t lane : largest) {
            if (lane >= 0x7f80 && !all_see(begin, end)) return false;
        }
        return true;
    }

    // Elements of two values beside one another; of one and zeros if there is no second.
    void pack_pair(const uint32_t* rows, int64_t count, uint32_t* to, uint32_t* largest) {
        const uint32_t first_mask = count > 0 ? ~0u : 0, second_mask = count > 1 ? ~0u : 0;
        const uint32_t *first = count > 0 ? rows : values_, *second = count > 1 ? rows + d_ / 2 : values_;
        for (int64_t i = 0; i < d_ / 2; i += kLanes, to += kLanes * kLanes * 2) {
            alignas(64) uint32_t even[kLanes], odd[kLanes];
            for (int64_t c = 0; c < kLanes; ++c) {
                const uint32_t a = pair_without_specks(first[i + c] & first_mask);
                const uint32_t b = pair_without_specks(second[i + c] & second_mask);
                even[c] = (a & 0xffffu) | b << 16;
                odd[c] = a >> 16 | (b & 0xffff0000u);
                largest[c] = higher(largest[c], higher(higher(a & 0x7fffu, a >> 16 & 0x7fffu),
                                                       higher(b & 0x7fffu, b >> 16 & 0x7fffu)));
            }
            Vector left, right;
            std::memcpy(&left, even, sizeof left);
            std::memcpy(&right, odd, sizeof right);
            const Vector low =
                LLMINT8_SHUFFLE(left, right, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            const Vector high =
                LLMINT8_SHUFFLE(left, right, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
            std::memcpy(to, &low, sizeof low);
            std::memcpy(to + kLanes * kLanes, &high, sizeof high);
        }
    }

    static uint32_t higher(uint32_t a, uint32_t b) { return a > b ? a : b; }

    void mix_tiles(int64_t begin, int64_t end) {
        finish_writing(values_);
        for (int64_t row = 0; row < rows_; row += 2 * kTileRows) {
            const bool lower = row + kTileRows < rows_;
            const int64_t last = smaller(row + 2 * kTileRows, rows_) - 1;
            const int64_t from = larger(begin, visible(row).begin / kPairBlock * kPairBlock);
            const int64_t to = smaller(end, visible(last).end);
            if (from >= to) continue;
            for (int64_t i = 0; i < d_; i += 2 * kTileRows) {
                float* const sums = sums_ + row * d_ + i;
                tiles_.load(sums, d_, lower);
                for (int64_t key = from; key < to; key += kPairBlock) {
                    const uint32_t* const values = values_ + (key - begin) / 2 * d_ + i * kLanes;
                    tiles_.add(weights_ + row * stride_ + key - begin_, stride_, values,
                               values + kLanes * kLanes, lower);
                }
                tiles_.store(sums, d_, lower);
            }
        }
    }

    FloatTiles tiles_;
    uint32_t* values_;
    uint16_t *query_halves_, *weights_;
};

void tile_attend(const AttentionTask& task, void* scratch) {
    if (task.dtype == LLMINT8_BFLOAT16 && task.heads * task.queries >= kFewestTileRows) {
        TileAttention(task, scratch).run();
    } else {
        attend(task, scratch);
    }
}

}  // namespace
}  // namespace llmint8
