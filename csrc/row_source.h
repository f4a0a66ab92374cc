// Rows of x on their way to digits, and the private memory that takes.
#pragma once

#include <cstring>

#include "kernel_table.h"

namespace llmint8 {
namespace {

inline int64_t padded(int64_t k) {
    return round_up(k, kPadding);
}

// The rows of x, and their digits.
struct RowSource {
    // lo, hi: padded(k) bytes; hi is left alone when the row has no high digit. widened: as many floats.
    RowScale quantize(int64_t row, float* widened, int8_t* lo, int8_t* hi) const {
        const void* source = static_cast<const char*>(x) + row * k * (dtype == LLMINT8_FLOAT32 ? 4 : 2);
        const RowScale scale = kernels.quantize_row(source, dtype, k, threshold, widened, lo, hi);
        std::memset(lo + k, 0, static_cast<size_t>(padded(k) - k));
        if (scale.has_high) std::memset(hi + k, 0, static_cast<size_t>(padded(k) - k));
        return scale;
    }

    const KernelTable& kernels;
    int dtype;
    int64_t k;
    const void* x;
    float threshold;
};

// Private memory of a thread that quantises `rows` rows together: a row of floats, and their digits.
struct RowScratch {
    RowScratch(int64_t k, int64_t rows, int threads)
        : k(padded(k)), rows(rows), memory(allocate(threads * bytes())) {}

    int64_t bytes() const { return round_up(k * static_cast<int64_t>(sizeof(float)) + rows * 2 * k, 64); }
    float* widened(int thread) const { return reinterpret_cast<float*>(memory.get() + thread * bytes()); }
    int8_t* lo(int thread) const { return reinterpret_cast<int8_t*>(widened(thread) + k); }
    int8_t* hi(int thread) const { return lo(thread) + rows * k; }

    int64_t k, rows;
    Buffer memory;
};

}  // namespace
}  // namespace llmint8
