// Rows of a weight that a kernel reads side by side, and how they are fetched ahead.
// Internal linkage, as in float_bits.h and for the same reason.
#pragma once

#include "kernel_table.h"

namespace llmint8 {
namespace {

// Bytes of a long weight row between what is packed and what is fetched.
constexpr int64_t kPackAhead = 256;

// Bytes of a weight row so short that the next ones are better in the first-level cache.
constexpr int64_t kShortRow = 1024;

// Bytes between what is read and what is fetched of a weight that is read tile by tile: a whole tile, whose
// rows are read side by side, or more.
LLMINT8_INLINE int64_t stream_ahead(int64_t tile) {
    constexpr int64_t kLeast = 16384;
    return tile > kLeast ? tile : kLeast;
}

// Asks for the second digits of columns [begin, end): they are too short for their products to ask in time.
LLMINT8_INLINE void expect_second_digits(const LinearCall& call, int64_t begin, int64_t end) {
    if (call.p == 0) return;
    const int8_t* const last = call.weight_low + (end < call.n ? end : call.n) * call.p;
    for (const int8_t* at = call.weight_low + begin * call.p; at < last; at += 64)
        __builtin_prefetch(at, 0, 2);
}

// Weight rows from n on that a kernel reads side by side; past the last one of the tile that one repeats.
// Past the end of a row a kernel may read on in the next, since the digits there are zero, up to `end`.
template <int kRows>
struct WeightRows {
    WeightRows(const Product& product, int64_t n, int64_t last)
        : end(product.weight + product.n * product.rows->k()) {
        const int64_t k = product.rows->k();
        for (int r = 0; r < kRows; ++r) at[r] = product.weight + (n + r < last ? n + r : last - 1) * k;
    }

    // Ask for what will be read next, 64 bytes for each row, when a kernel is at position i, a multiple
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

    // Ask for what comes later in memory, into the second-level cache; from there hardware fetches long rows
    // itself. What it finds out without help was a third slower on AMD's Zen 4. A CPU drops such requests
    // when it has too many: each pass of rows repeats them, and one that is alone does at other distances.
    LLMINT8_INLINE void stream_next(int64_t i, int64_t k) const {
        const int8_t* next = at[0] + kRows * i + stream_ahead(kRows * k);
        for (int line = 0; line < kRows; ++line) __builtin_prefetch(next + line * 64, 0, 2);
        const int64_t repeats = !asks_often_ ? 0 : k < kPageBytes ? 3 : 5;
        for (int64_t r = 0; r < repeats; ++r) {
            for (int line = 0; line < kRows; ++line)
                __builtin_prefetch(next + kDistances[r] + line * 64, 0, 2);
        }
        if (k < kShortRow) prefetch_next(i, k, 0);
    }

    // Whether one pass of rows is alone. On Zen 4 its repeats made one row 1.1 to 1.3 times faster, and more
    // of them made rows of a page and more faster still; a weight that is in a cache takes up to 1.5 times as
    // long.
    void ask_often(bool yes) { asks_often_ = yes; }

    static constexpr int64_t kPageBytes = 4096;

    const int8_t* at[kRows];
    const int8_t* end;

  private:
    // Between a first request and its repeats.
    static constexpr int64_t kDistances[] = {4096, -4096, -8192, 8192, 16384};

    bool asks_often_ = false;
};

}  // namespace
}  // namespace llmint8
