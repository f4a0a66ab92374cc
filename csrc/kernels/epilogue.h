// Integer sums to outputs: docs/numerics.md, "Epilogue".
// Internal linkage, as in float_bits.h and for the same reason; no fused multiply-add, as in row_math.h.
#pragma once

#include <cstdint>

#include "kernel_table.h"
#include "kernels/row_math.h"

namespace llmint8 {
namespace {

// The scales and biases of one tile of columns, widened; columns past the end are zero.
template <int kColumns>
struct ColumnScales {
    ColumnScales(const LinearCall& call, int64_t begin, int64_t end) : has_bias(call.bias != nullptr) {
        const int64_t count = end - begin;
        for (int64_t i = 0; i < count; ++i) scale[i] = call.absmax[begin + i] / kCodeMax;
        if (has_bias) {
            const int64_t bytes = call.bias_dtype == LLMINT8_FLOAT32 ? 4 : 2;
            widen(static_cast<const char*>(call.bias) + begin * bytes, call.bias_dtype, count, bias);
        }
    }

    bool has_bias;
    float scale[kColumns] = {};
    float bias[kColumns] = {};
};

// The sums of one row and one tile of columns. high: null when the row has no high digit.
struct DigitSums {
    const int32_t* low;
    const int32_t* high;
};

// Second digits count 1 / 256, which is exact.
LLMINT8_NOINLINE void add_second_digits(DigitSums sums, int64_t count, float* __restrict y) {
    const int32_t* __restrict low = sums.low, * __restrict high = sums.high;
    if (high == nullptr) {
        for (int64_t i = 0; i < count; ++i) y[i] += static_cast<float>(low[i]) * 0x1p-8f;
    } else {
        for (int64_t i = 0; i < count; ++i) {
            y[i] += static_cast<float>(high[i]) + static_cast<float>(low[i]) * 0x1p-8f;
        }
    }
}

// Count outputs of one row as floats. second: the sums with the second digits of the weight; null if p = 0.
LLMINT8_NOINLINE void finish_floats(DigitSums sums, const DigitSums* second, float row_scale,
                                    const float* __restrict scale, const float* __restrict bias,
                                    int64_t count, float* __restrict y) {
    const int32_t* __restrict low = sums.low, * __restrict high = sums.high;
    if (high == nullptr) {
        for (int64_t i = 0; i < count; ++i) y[i] = static_cast<float>(low[i]);
    } else {
        for (int64_t i = 0; i < count; ++i) {
            y[i] = static_cast<float>(high[i]) * 256.0f + static_cast<float>(low[i]);
        }
    }
    if (second != nullptr) add_second_digits(*second, count, y);
    for (int64_t i = 0; i < count; ++i) y[i] *= row_scale * scale[i];
    if (bias != nullptr) {
        for (int64_t i = 0; i < count; ++i) y[i] += bias[i];
    }
    for (int64_t i = 0; i < count; ++i) {
        y[i] = from_bits(magnitude_bits(y[i]) > 0x7f800000 ? 0x7fc00000u : to_bits(y[i]));
    }
}

// One row of one tile of columns; second as above.
template <int kColumns>
inline void finish_row(const LinearCall& call, const ColumnScales<kColumns>& columns, int64_t row,
                       int64_t begin, int64_t end, DigitSums sums, const DigitSums* second) {
    float y[kColumns];
    finish_floats(sums, second, call.rows->row(row).scale.scale, columns.scale,
                  columns.has_bias ? columns.bias : nullptr, end - begin, y);
    const int64_t bytes = call.dtype == LLMINT8_FLOAT32 ? 4 : 2;
    narrow(y, call.dtype, end - begin, static_cast<char*>(call.y) + (row * call.n + begin) * bytes);
}

}  // namespace
}  // namespace llmint8
