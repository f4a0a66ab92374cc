// Keys by their number among those that are not masked for the sequence, which decides the order of sums:
// docs/numerics.md, "Decoder". Internal linkage, as in float_bits.h and for the same reason.
#pragma once

#include <cstring>

#include "decoder_kernels.h"
#include "llmint8.h"

namespace llmint8 {
namespace {

inline int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

inline int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

constexpr int64_t kFetchAhead = 4096;  // bytes from what is read to what is fetched

struct NumberedKeys {
    const AttentionTask& task;

    // How many keys before a position are not masked.
    int64_t before(int64_t position) const {
        int64_t count = 0;
        for (int64_t i = 0; i < task.range_count; ++i) {
            count += larger(0, smaller(position, task.ranges[i].end) - task.ranges[i].begin);
        }
        return count;
    }

    int64_t element_bytes() const { return task.dtype == LLMINT8_FLOAT32 ? 4 : 2; }

    // body(elements of consecutive keys, their count, how many came before): all of [begin, end), in order.
    template <class Body>
    void for_pieces(const void* source, int64_t begin, int64_t end, const Body& body) const {
        int64_t passed = 0;
        const int64_t first = begin;
        for (int64_t i = 0; i < task.range_count && begin < end; ++i) {
            const KeyRange& range = task.ranges[i];
            const int64_t length = range.end - range.begin, skipped = begin - passed;
            passed += length;
            if (skipped >= length) continue;
            const int64_t count = smaller(length - skipped, end - begin);
            body(static_cast<const char*>(source) + (range.begin + skipped) * task.head_dim * element_bytes(),
                 count, begin - first);
            begin += count;
        }
    }

    // Keys or values [begin, end) as they are, d elements apart, zeros behind head_dim: in place
    // where they lie so, else in `staged`.
    const void* gather(const void* source, int64_t begin, int64_t end, int64_t d, void* staged) const {
        const int64_t bytes = task.head_dim * element_bytes(), apart = d * element_bytes();
        const void* whole = nullptr;
        char* const to = static_cast<char*>(staged);
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
};

}  // namespace
}  // namespace llmint8
