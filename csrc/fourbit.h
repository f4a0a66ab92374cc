// Linear layers with 4-bit weights, and the weights as floats: docs/numerics.md, "4 bits".
#pragma once

#include <cstdint>

#include "kernel_table.h"

namespace llmint8 {

// Codes of all elements in order, two a byte, the first in its upper half. Block b has the scale absmax[b],
// or where there are absmax_codes nested_book[absmax_codes[b]] * absmax[b / 256] + offset.
struct FourbitWeight {
    const uint8_t* codes;
    const float* book;  // [16]
    int64_t block;
    const float* absmax;
    const uint8_t* absmax_codes;
    const float* nested_book;  // [256]
    float offset;
};

struct FourbitLinear {
    int dtype;
    int64_t m, k, n;
    const void* x;  // [m, k] of dtype
    FourbitWeight weight;
    const void* bias;  // [n] of bias_dtype, or null
    int bias_dtype;
    void* y;  // [m, n] of dtype
};

void fourbit_linear(const KernelTable& kernels, int threads, const FourbitLinear& call);

// The first `count` elements, as dtype.
void fourbit_dequantize(const KernelTable& kernels, int threads, const FourbitWeight& weight, int64_t count,
                        int dtype, void* out);

}  // namespace llmint8
