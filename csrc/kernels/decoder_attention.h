// Attention of a few heads that share their keys and values: docs/numerics.md, "Decoder".
//
// Keys go by their number among those that are not masked for the sequence; it decides the order of sums.
// Scores of all rows (a row is one head of one query) lie in memory as a whole, so the softmax needs no
// second thought when its maximum grows. Keys and values are read in blocks that stay in the first cache for
// all rows. Internal linkage, as in float_bits.h and for the same reason.
#pragma once

#include <type_traits>

#include "kernels/decoder_rows.h"
#include "kernels/key_columns.h"
#include "kernels/pair_sums.h"
#include "kernels/softmax.h"

namespace llmint8 {
namespace {

constexpr int64_t round_up(int64_t count, int64_t to) {
    return (count + to - 1) / to * to;
}

constexpr int64_t kFetchAhead = 4096;  // bytes

// How far apart the scores of rows are at most.
constexpr int64_t most_scores(int64_t keys) {
    return round_up(keys, kPairBlock) + kPairBlock;
}

int64_t attention_bytes(int64_t rows, int64_t head_dim, int64_t keys) {
    const int64_t d = round_up(head_dim, kPairBlock), all_rows = round_up(rows, kLanes);
    return (all_rows * (5 + 2 * d + most_scores(keys)) + 3 * kPairBlock * d) *
           static_cast<int64_t>(sizeof(float));
}

class Attention {
  public:
    Attention(const AttentionTask& task, void* scratch)
        : task_(task),
          rows_(task.heads * task.queries),
          all_rows_(round_up(rows_, kLanes)),
          d_(round_up(task.head_dim, kPairBlock)) {
        seen_ = static_cast<KeyRange*>(scratch);
        for (int64_t t = 0; t < task.queries; ++t) {
            const int64_t end = task.position + t + 1;
            seen_[t] = {task.window > 0 ? number_of(larger(0, end - task.window)) : 0, number_of(end)};
        }
        begin_ = visible(0).begin / kPairBlock * kPairBlock, end_ = visible(rows_ - 1).end;
        stride_ = round_up(end_ - begin_, kPairBlock);
        queries_ = static_cast<float*>(scratch) + 4 * all_rows_;
        sums_ = queries_ + all_rows_ * d_;
        inverse_ = sums_ + all_rows_ * d_;
        staged_ = inverse_ + all_rows_;
        pairs_ = staged_ + kPairBlock * d_;
        floats_ = pairs_ + kPairBlock * d_;
        scores_ = floats_ + kPairBlock * d_;
    }

    void run() {
        with_element(task_.dtype, [&](auto element) {
            using Element = decltype(element);
            for_heads([&](const void* query, int64_t row) {
                widen_rows(task_.dtype, query, task_.heads, task_.head_dim, d_, queries_ + row * d_);
            });
            remove_specks<Element>(queries_, rows_ * d_);
            for (int64_t key = begin_; key < end_; key += kLanes) score<Element>(key);
            weigh<Element>(scores_);
            for (int64_t key = begin_; key < end_; key += kPairBlock) mix<Element>(key);
            finish<Element>();
        });
    }

  protected:
    template <class Element>
    static constexpr bool kExact = !std::is_same<Element, Float32>::value;

    static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
    static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

    template <class Element>
    static void remove_specks(float* x, int64_t count) {
        if (!std::is_same<Element, Bfloat16>::value) return;
        for (int64_t i = 0; i < count; ++i) x[i] = without_speck(x[i]);
    }

    int64_t element_bytes() const { return task_.dtype == LLMINT8_FLOAT32 ? 4 : 2; }

    // How many keys before a position are not masked.
    int64_t number_of(int64_t position) const {
        int64_t count = 0;
        for (int64_t i = 0; i < task_.range_count; ++i) {
            count += larger(0, smaller(position, task_.ranges[i].end) - task_.ranges[i].begin);
        }
        return count;
    }

    // Numbers of the keys that a row sees.
    KeyRange visible(int64_t row) const { return seen_[row / task_.heads]; }

    float* scores(int64_t row, int64_t key) const { return scores_ + row * stride_ + key - begin_; }

    // body(heads of a query, the first one's row).
    template <class Body>
    void for_heads(const Body& body) const {
        for (int64_t t = 0; t < task_.queries; ++t) {
            body(static_cast<const char*>(task_.query) + t * task_.query_stride * element_bytes(),
                 t * task_.heads);
        }
    }

    // body(elements of consecutive keys, their count, how many came before): all of [begin, end), in order.
    template <class Body>
    void for_pieces(const void* source, int64_t begin, int64_t end, const Body& body) const {
        int64_t before = 0;
        const int64_t first = begin;
        for (int64_t i = 0; i < task_.range_count && begin < end; ++i) {
            const KeyRange& range = task_.ranges[i];
            const int64_t length = range.end - range.begin, skipped = begin - before;
            before += length;
            if (skipped >= length) continue;
            const int64_t count = smaller(length - skipped, end - begin);
            body(
                static_cast<const char*>(source) + (range.begin + skipped) * task_.head_dim * element_bytes(),
                count, begin - first);
            begin += count;
        }
    }

    // Keys or values [begin, end) as they are, d_ elements apart; in place where they lie so.
    const void* gather(const void* source, int64_t begin, int64_t end) const {
        const int64_t bytes = task_.head_dim * element_bytes(), apart = d_ * element_bytes();
        const void* whole = nullptr;
        char* const to = reinterpret_cast<char*>(staged_);
        for_pieces(source, begin, end, [&](const char* from, int64_t count, int64_t row) {
            if (count == end - begin && bytes == apart) {
                whole = from;
                for (int64_t ahead = 0; ahead < count * bytes; ahead += 64) {  // the rows behind the next
                    __builtin_prefetch(from + kFetchAhead + ahead);
                }
                return;
            }
            for (int64_t i = 0; i < count; ++i) {
                std::memcpy(to + (row + i) * apart, from + i * bytes, static_cast<size_t>(bytes));
                std::memset(to + (row + i) * apart + bytes, 0, static_cast<size_t>(apart - bytes));
            }
        });
        return whole != nullptr ? whole : to;
    }

    // Keys [key, key + 16) transposed, [d_][16].
    template <class Element>
    const float* transposed(int64_t key) {
        const int64_t count = smaller(kLanes, end_ - key);
        const void* rows = gather(task_.key, key, key + count);
        if (std::is_same<Element, Bfloat16>::value) {
            transpose_sixteen(rows, d_ * 2, count, d_ / 2, pairs_);
            widen_pairs(pairs_, d_ / 2, floats_);
            return floats_;
        }
        if (std::is_same<Element, Float16>::value) {
            widen(rows, task_.dtype, count * d_, floats_);
            rows = floats_;
        }
        transpose_sixteen(rows, d_ * 4, count, d_, pairs_);
        return pairs_;
    }

    // Scores of all rows that see one of sixteen keys, also of those keys that some of them do not see.
    template <class Element>
    void score(int64_t key) {
        int64_t begin = 0, end = rows_;
        while (begin < end && visible(begin).end <= key) begin += task_.heads;
        while (end > begin && visible(end - 1).begin >= key + kLanes) end -= task_.heads;
        if (begin == end) return;
        const SixteenKeys products{queries_ + begin * d_, d_,     transposed<Element>(key), d_,
                                   scores(begin, key),    stride_};
        products.run<kExact<Element>>(end - begin);
    }

    // Scores to weights, into rows of the scores' length.
    template <class Element, class Storage>
    void weigh(Storage* to) {
        for (int64_t row = 0; row < rows_; ++row) {
            const KeyRange keys = visible(row);
            inverse_[row] = softmax<Element>(scores(row, begin_), stride_, keys.begin - begin_,
                                             keys.end - begin_, task_.scaling, to + row * stride_);
        }
        for (int64_t i = 0; i < rows_ * d_; ++i) sums_[i] = 0.0f;
    }

    // Values of a block, weighted, into the sums.
    template <class Element>
    void mix(int64_t key) {
        const int64_t count = smaller(kPairBlock, end_ - key);
        const float* values = static_cast<const float*>(gather(task_.value, key, key + count));
        if (!std::is_same<Element, Float32>::value) {
            widen(values, task_.dtype, count * d_, floats_);
            remove_specks<Element>(floats_, count * d_);
            values = floats_;
        }
        const ValueBlock block{scores(0, key), stride_, values, d_, count, sums_};
        if (all_see(key, key + count) || all_finite(values, count * d_)) {
            block.run<kExact<Element>>(rows_);
        } else {
            mix_alone<Element>(key, block);
        }
    }

    bool all_see(int64_t begin, int64_t end) const {
        return visible(rows_ - 1).begin <= begin && visible(0).end >= end;
    }

    static bool all_finite(const float* x, int64_t count) {
        int32_t largest = 0;
        for (int64_t i = 0; i < count; ++i) {
            const int32_t bits = magnitude_bits(x[i]);
            largest = bits > largest ? bits : largest;
        }
        return largest < 0x7f800000;
    }

    // A weight of zero keeps no infinity out: each row with its own keys alone.
    template <class Element>
    void mix_alone(int64_t key, const ValueBlock& block) {
        for (int64_t row = 0; row < rows_; ++row) {
            const KeyRange seen = visible(row);
            for (int64_t j = 0; j < block.count; ++j) {
                const bool sees = key + j >= seen.begin && key + j < seen.end;
                for (int64_t i = 0; i < d_; ++i) pairs_[j * d_ + i] = sees ? block.values[j * d_ + i] : 0.0f;
            }
            ValueBlock own = block;
            own.weights += row * stride_, own.values = pairs_, own.sums += row * d_;
            own.run<kExact<Element>>(1);
        }
    }

    template <class Element>
    void finish() {
        using Storage = typename Element::Storage;
        for (int64_t row = 0; row < rows_; ++row) {
            const int64_t t = row / task_.heads, head = row % task_.heads;
            Storage* to = static_cast<Storage*>(task_.out) + t * task_.query_stride + head * task_.head_dim;
            const float* from = sums_ + row * d_;
            const float inverse = inverse_[row];
            for (int64_t i = 0; i < task_.head_dim; ++i) to[i] = Element::narrow(from[i] * inverse);
        }
    }

    const AttentionTask& task_;
    int64_t rows_, all_rows_, d_, begin_, end_, stride_;
    KeyRange* seen_;
    float *queries_, *sums_, *inverse_, *staged_, *pairs_, *floats_, *scores_;  // scores_ is the last
};

void attend(const AttentionTask& task, void* scratch) {
    Attention(task, scratch).run();
}

}  // namespace
}  // namespace llmint8
