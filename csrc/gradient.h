// The gradient of the int8 linear layer with respect to its input: dX = dY W, with W never a float matrix.
#pragma once

#include <cstdint>

#include "kernel_table.h"

namespace llmint8 {

// What llmint8_input_gradient was given.
struct GradientCall {
    int dtype;
    int64_t m, k, n;
    const void* grad;      // [m, n] of dtype
    const int8_t* weight;  // [n, k]
    const float* absmax;   // [n]
    int64_t outliers;
    const int32_t* outlier_cols;  // [outliers], ascending
    const int8_t* weight_low;     // [n, outliers]
    void* grad_input;             // [m, k] of dtype
};

constexpr int64_t kGradientColumns = 32;  // columns of grad_input that one unit of work computes

// Rows of grad, times the scales of the columns: tiles of `tile_rows` rows, in each [n][row of the tile].
struct ScaledRows {
    int64_t begin, count;  // rows of grad
    const float* values;
};

// What a vector width provides; three sets serve all instruction sets.
struct GradientKernels {
    int64_t tile_rows;

    // Bytes of private memory that a thread needs for `rows` rows.
    int64_t (*scratch_bytes)(const GradientCall& call, int64_t rows);

    // Rows [begin, end), at most tile_rows of them, to a tile. scales: [n].
    void (*scale_rows)(const GradientCall& call, const float* scales, int64_t begin, int64_t end,
                       void* scratch, float* tile);

    // Columns [begin, end), at most kGradientColumns, of the rows.
    void (*columns)(const GradientCall& call, const ScaledRows& rows, int64_t begin, int64_t end,
                    void* scratch);
};

extern const GradientKernels kBaselineGradient;
#if defined(LLMINT8_X86)
extern const GradientKernels kAvx2Gradient;
extern const GradientKernels kAvx512Gradient;
#endif

void input_gradient(const KernelTable& kernels, int threads, const GradientCall& call);

}  // namespace llmint8
