// The linear layers of a decoder, int8 or float, several on the same input at once.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "kernel_table.h"
#include "llmint8_decoder.h"

namespace llmint8 {

struct Projection {
    const llmint8_decoder_linear& layer;
    void* y;  // [m, n] of dtype
};

constexpr int64_t kMostProjections = 3;

// At most kMostProjections layers with the same k, on x [m, k] of dtype.
void project(const KernelTable& kernels, int threads, int dtype,
             std::initializer_list<Projection> projections, int64_t m, const void* x);

}  // namespace llmint8
