// What every instruction set does alike: rows to digits, then columns in tiles, both over threads.
#pragma once

#include <cstdint>

#include "kernel_table.h"

namespace llmint8 {

void quantize_rows(const KernelTable& kernels, int threads, int dtype, int64_t m, int64_t k, const void* x,
                   float threshold, int16_t* q, float* row_scale);

// call.rows is ignored and filled in; everything else is the caller's.
void linear(const KernelTable& kernels, int threads, LinearCall call, int64_t m, int64_t k, const void* x,
            float threshold);

}  // namespace llmint8
