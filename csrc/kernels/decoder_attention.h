// Attention of a few heads that share their keys and values: docs/numerics.md, "Decoder".
//
// Scores of all rows (a row is one head of one query) lie in memory as a whole, so the softmax needs no
// second thought when its maximum grows. Keys and values are read in blocks that stay in the first cache for
// all rows. Internal linkage, as in float_bits.h and for the same reason.
#pragma once

#include <type_traits>

#include "kernels/decoder_rows.h"
#include "kernels/key_columns.h"
#include "kernels/numbered_keys.h"
#include "kernels/pair_sums.h"
#include "kernels/softmax.h"

namespace llmint8 {
namespace {

// How far apart the scores of rows are at most.
constexpr int64_t most_scores(int64_t keys) {
    return round_up(keys, kPairBlock) + kPairBlock;
}

int64_t attention_bytes(int64_t rows, int64_t head_dim, int64_t keys) {
    const int64_t d = round_up(head_dim, kPairBlock), all_rows = pad_floats(rows);
    return (all_rows * (5 + 2 * d + most_scores(keys)) + 3 * kPairBlock * d) *
           static_cast<int64_t>(sizeof(float));
}

class Attention {
  public:
    Attention(const AttentionTask& task, void* scratch)
        : task_(task),
          keys_{task},
          rows_(task.heads * task.queries),
          all_rows_(pad_floats(rows_)),
          d_(round_up(task.head_dim, kPairBlock)) {
        seen_ = static_cast<KeyRange*>(scratch);
        for (int64_t t = 0; t < task.queries; ++t) {
            const int64_t end = task.position + t + 1;
            seen_[t] = {task.window > 0 ? keys_.before(larger(0, end - task.window)) : 0, keys_.before(end)};
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

    template <class Element>
    static void remove_specks(float* x, int64_t count) {
        if (!std::is_same<Element, Bfloat16>::value) return;
        for (int64_t i = 0; i < count; ++i) x[i] = without_speck(x[i]);
    }

    // Numbers of the keys that a row sees.
    KeyRange visible(int64_t row) const { return seen_[row / task_.heads]; }

    struct RowRange {
        int64_t begin, end;
    };

    // Rows that see one of the keys [begin, end).
    RowRange rows_that_see(int64_t begin, int64_t end) const {
        RowRange rows{0, rows_};
        while (rows.begin < rows.end && visible(rows.begin).end <= begin) rows.begin += task_.heads;
        while (rows.end > rows.begin && visible(rows.end - 1).begin >= end) rows.end -= task_.heads;
        return rows;
    }

    float* scores(int64_t row, int64_t key) const { return scores_ + row * stride_ + key - begin_; }

    // body(heads of a query, the first one's row).
    template <class Body>
    void for_heads(const Body& body) const {
        for (int64_t t = 0; t < task_.queries; ++t) {
            body(static_cast<const char*>(task_.query) + t * task_.query_stride * keys_.element_bytes(),
                 t * task_.heads);
        }
    }

    // Keys [key, key + 16) transposed, [d_][16].
    template <class Element>
    const float* transposed(int64_t key) {
        const int64_t count = smaller(kLanes, end_ - key);
        const void* rows = keys_.gather(task_.key, key, key + count, d_, staged_);
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
        const RowRange rows = rows_that_see(key, key + kLanes);
        if (rows.begin == rows.end) return;
        const SixteenKeys products{queries_ + rows.begin * d_, d_,     transposed<Element>(key), d_,
                                   scores(rows.begin, key),    stride_};
        products.run<kExact<Element>>(rows.end - rows.begin);
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
        const float* values =
            static_cast<const float*>(keys_.gather(task_.value, key, key + count, d_, staged_));
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
    const NumberedKeys keys_;
    int64_t rows_, all_rows_, d_, begin_, end_, stride_;
    KeyRange* seen_;
    float *queries_, *sums_, *inverse_, *staged_, *pairs_, *floats_, *scores_;  // scores_ is the last
};

void attend(const AttentionTask& task, void* scratch) {
    Attention(task, scratch).run();
}

}  // namespace
}  // namespace llmint8
