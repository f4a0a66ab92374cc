// Attention of a few heads that share their keys and values: docs/numerics.md, "Decoder".
//
// Scores of all rows (a row is one head of one query) lie in memory as a whole, so the softmax needs no
// second thought when its maximum grows, and sums can run in the order of the keys whatever the blocks. Keys
// and values are read in blocks that stay in the first cache for all rows. Internal linkage, as in
// float_bits.h and for the same reason.
#pragma once

#include "kernels/decoder_rows.h"
#include "kernels/key_columns.h"
#include "kernels/weighted_sums.h"

namespace llmint8 {
namespace {

constexpr int64_t kKeyBlock = 64;

int64_t attention_bytes(int64_t rows, int64_t head_dim, int64_t keys) {
    const int64_t d = pad_floats(head_dim), scores = (rows + 1) * pad_floats(keys);
    return ((2 * rows + 2 * kKeyBlock) * d + pad_floats(rows) + scores) * static_cast<int64_t>(sizeof(float));
}

class Attention {
  public:
    Attention(const AttentionTask& task, void* scratch)
        : task_(task), rows_(task.heads * task.queries), d_(pad_floats(task.head_dim)) {
        first_ = visible(0).begin, last_ = visible(rows_ - 1).end;
        if (task.range_count > 0) {
            first_ = larger(first_, task.ranges[0].begin);
            last_ = smaller(last_, task.ranges[task.range_count - 1].end);
        }
        stride_ = pad_floats(larger(last_ - first_, 0));
        queries_ = static_cast<float*>(scratch);
        sums_ = queries_ + rows_ * d_;
        block_ = sums_ + rows_ * d_;
        transposed_ = block_ + kKeyBlock * d_;
        inverse_ = transposed_ + kKeyBlock * d_;
        dense_ = inverse_ + pad_floats(rows_);
        scores_ = dense_ + stride_;
    }

    void run() {
        const int64_t row_bytes = task_.query_stride * element_bytes();
        for (int64_t t = 0; t < task_.queries; ++t) {
            const void* query = static_cast<const char*>(task_.query) + t * row_bytes;
            widen_rows(task_.dtype, query, task_.heads, task_.head_dim, d_, queries_ + t * task_.heads * d_);
        }
        for (int64_t i = 0; i < rows_ * d_; ++i) sums_[i] = 0.0f;
        for (int64_t key = first_; key < last_; key += kKeyBlock) score(block(task_.key, key));
        for (int64_t row = 0; row < rows_; ++row) inverse_[row] = softmax(row);
        for (int64_t key = first_; key < last_; key += kKeyBlock) mix(block(task_.value, key));
        with_element(task_.dtype, [&](auto element) { finish<decltype(element)>(); });
    }

  private:
    // Keys or values of a block as floats, d_ apart.
    struct Block {
        KeyRange keys;
        const float* rows;
    };

    static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
    static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
    static KeyRange common(KeyRange a, KeyRange b) {
        return {larger(a.begin, b.begin), smaller(a.end, b.end)};
    }

    int64_t element_bytes() const { return task_.dtype == LLMINT8_FLOAT32 ? 4 : 2; }

    // What a row's query could see if no key were masked.
    KeyRange visible(int64_t row) const {
        const int64_t end = task_.position + row / task_.heads + 1;
        return {task_.window > 0 ? larger(0, end - task_.window) : 0, end};
    }

    float* scores(int64_t row, int64_t key) const { return scores_ + row * stride_ + key - first_; }

    Block block(const void* source, int64_t key) const {
        const int64_t end = smaller(key + kKeyBlock, last_), d = task_.head_dim;
        const char* from = static_cast<const char*>(source) + key * d * element_bytes();
        if (task_.dtype == LLMINT8_FLOAT32 && d == d_)
            return {{key, end}, reinterpret_cast<const float*>(from)};
        widen_rows(task_.dtype, from, end - key, d, d_, block_);
        return {{key, end}, block_};
    }

    // Scores of all rows that see a key of the block, also those of keys that some of them do not see.
    void score(const Block& block) {
        int64_t begin = 0, end = rows_;
        while (begin < end && visible(begin).end <= block.keys.begin) begin += task_.heads;
        while (end > begin && visible(end - 1).begin >= block.keys.end) end -= task_.heads;
        const int64_t keys = block.keys.end - block.keys.begin;
        if (kSixteenInRegister && end - begin >= kLeastSharingRows) {
            transpose_keys(block.rows, keys, d_, transposed_);
            dot_transposed(queries_ + begin * d_, d_, end - begin, transposed_, keys, d_,
                           scores(begin, block.keys.begin), stride_);
            return;
        }
        const DotProducts products{queries_ + begin * d_,           d_,     block.rows, d_, d_,
                                   scores(begin, block.keys.begin), stride_};
        products.run(end - begin, keys);
    }

    // Scores of a row to weights, not yet divided by their sum; returns the sum's inverse, 0 without keys.
    float softmax(int64_t row) {
        float largest = -__builtin_inff();
        int64_t count = 0;
        for_each_range(visible(row), [&](KeyRange keys) {
            const int64_t length = keys.end - keys.begin;
            largest = scale_and_raise(scores(row, keys.begin), length, task_.scaling, largest);
            count += length;
        });
        if (count == 0) return 0.0f;
        const float* weights = nullptr;
        int64_t copied = 0;
        for_each_range(visible(row), [&](KeyRange keys) {
            const int64_t length = keys.end - keys.begin;
            float* at = scores(row, keys.begin);
            exponentials(at, length, largest);
            if (length == count) {
                weights = at;
            } else {  // holes between the keys take no lanes
                std::memcpy(dense_ + copied, at, static_cast<size_t>(length) * sizeof(float));
                weights = dense_;
                copied += length;
            }
        });
        return 1.0f / sum_floats(weights, count);
    }

    // Values of a block, weighted, into the sums. Three rows share the loads of a value.
    void mix(const Block& block) {
        for (int64_t row = 0; row < rows_; row += 3) {
            const int64_t count = smaller(3, rows_ - row);
            for_each_range(block.keys, [&](KeyRange keys) {
                KeyRange shared = keys;
                for (int64_t r = row; r < row + count; ++r) shared = common(shared, visible(r));
                if (count < 3 || shared.begin >= shared.end) {
                    for (int64_t r = row; r < row + count; ++r)
                        mix_rows<1>(block, r, common(keys, visible(r)));
                    return;
                }
                for (int64_t r = row; r < row + 3; ++r) {
                    mix_rows<1>(block, r, common({keys.begin, shared.begin}, visible(r)));
                }
                mix_rows<3>(block, row, shared);
                for (int64_t r = row; r < row + 3; ++r) {
                    mix_rows<1>(block, r, common({shared.end, keys.end}, visible(r)));
                }
            });
        }
    }

    template <int kRows>
    void mix_rows(const Block& block, int64_t row, KeyRange keys) {
        if (keys.begin >= keys.end) return;
        const float* weights[kRows];
        float* sums[kRows];
        for (int r = 0; r < kRows; ++r) {
            weights[r] = scores(row + r, keys.begin);
            sums[r] = sums_ + (row + r) * d_;
        }
        add_value_rows<kRows>(weights, block.rows + (keys.begin - block.keys.begin) * d_, d_,
                              keys.end - keys.begin, sums);
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

    template <class Body>
    void for_each_range(KeyRange keys, const Body& body) const {
        for (int64_t i = 0; i < task_.range_count; ++i) {
            const KeyRange part = common(keys, task_.ranges[i]);
            if (part.begin < part.end) body(part);
        }
    }

    const AttentionTask& task_;
    int64_t rows_, d_, first_, last_, stride_;
    float *queries_, *sums_, *block_, *transposed_, *inverse_, *dense_, *scores_;
};

void attend(const AttentionTask& task, void* scratch) {
    Attention(task, scratch).run();
}

}  // namespace
}  // namespace llmint8
