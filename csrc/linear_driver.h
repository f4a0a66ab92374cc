// What every instruction set does alike: rows to digits, then columns in tiles, both over threads.
#pragma once

#include <cstdint>

#include "kernel_table.h"

namespace llmint8 {

void quantize_rows(const KernelTable& kernels, int threads, int dtype, int64_t m, int64_t k, const void* x,
                   float threshold, int16_t* q, float* row_scale);

void linear(const KernelTable& kernels, int threads, const LinearCall& call, int64_t m, int64_t k,
            const void* x);

// Several layers on the same x [m, k], of the same bits as one by one. Where they share their threshold too,
// x is quantised once and the threads divide all their columns at once.
void linear_group(const KernelTable& kernels, int threads, const LinearCall* calls, int64_t count, int64_t m,
                  int64_t k, const void* x);

}  // namespace llmint8
