// Rows of a weight that a kernel reads side by side, and how they are fetched ahead.
// Internal linkage, as in float_bits.h and for the same reason.
#pragma once

#include "kernel_table.h"

namespace llmint8 {
namespace {

// Bytes between what is read and what is fetched: of a long row that is packed, and of a weight that is read
// in the order of memory.
constexpr int64_t kPackAhead = 256, kStreamAhead = 16384;

// Weight rows from n on that a kernel reads side by side; past the last one of the tile that one repeats.
// Past the end of a row a kernel may read on in the next, since the digits there are zero, up to `end`.
template <int kRows>
struct WeightRows {
    WeightRows(const Product& product, int64_t n, int64_t last)
        : end(product.weight + product.n * product.rows->k()) {
        const int64_t k = product.rows->k();
        for (int r = 0; r < kRows; ++r) at[r] = product.weight + (n + r < last ? n + r : last - 1) * k;
    }

    // Ask for what will be packed next, 64 bytes for each row, when a kernel is at position i, a multiple
    // of 64. No hardware follows several short rows in one page: the next ones are fetched in the order of
    // memory. Rows of a page and more it follows itself, so that `ahead`, from i on, matters little.
    LLMINT8_INLINE void prefetch_next(int64_t i, int64_t k, int64_t ahead) const {
        if (k < kPageBytes) {
            const int8_t* next = at[0] + kRows * (k + i);
            for (int line = 0; line < kRows; ++line) __builtin_prefetch(next + line * 64);
        } else {
            for (const int8_t* row : at) __builtin_prefetch(row + i + ahead);
        }
    }

    // Ask for what comes later in memory, into the second-level cache. What hardware finds out by itself was a
    // third slower on AMD's Zen 4. A CPU drops such requests when it has too many: each pass of rows repeats
    // them.
    LLMINT8_INLINE void stream_next(int64_t i) const {
        const int8_t* next = at[0] + kRows * i + kStreamAhead;
        for (int line = 0; line < kRows; ++line) __builtin_prefetch(next + line * 64, 0, 2);
    }

    static constexpr int64_t kPageBytes = 4096;

    const int8_t* at[kRows];
    const int8_t* end;
};

}  // namespace
}  // namespace llmint8
