// What an instruction set provides: a struct of function pointers, filled once, chosen once.
// Everything outside kernels/ is compiled for the baseline CPU and reaches faster code only through here.
#pragma once

#include <cstdint>

#include "llmint8.h"
#include "quantized_rows.h"

namespace llmint8 {

// Digits of activations [m, k] times digits of a weight [n, k].
struct Product {
    const QuantizedRows* rows;
    const int8_t* weight;
    int64_t n;
};

// One linear layer on rows of activations: what its caller says, and what the driver adds for the kernels.
struct LinearCall {
    int64_t n;
    const int8_t* weight;  // [n, k]
    const float* absmax;   // [n]
    const void* bias;      // [n] of bias_dtype, or null
    int bias_dtype;
    float threshold;
    int64_t p;                    // columns of the weight with a second digit
    const int32_t* outlier_cols;  // [p], each within [0, k)
    const int8_t* weight_low;     // [n, p]
    void* y;                      // [m, n] of dtype
    int dtype;                    // of x too

    // The driver's.
    const QuantizedRows* rows = nullptr;          // digits of x, [m, k]
    const QuantizedRows* outlier_rows = nullptr;  // those of its columns outlier_cols, [m, p]; null if p = 0

    LLMINT8_INLINE Product codes() const { return {rows, weight, n}; }
    LLMINT8_INLINE Product second_digits() const { return {outlier_rows, weight_low, n}; }
};

struct KernelTable {
    const char* name;
    uint32_t required_features;  // LLMINT8_CPU_* bits

    // Columns that the work is divided by; a multiple of what the kernel keeps in registers.
    int64_t column_tile;

    // Of the digits of m rows.
    DigitLayout (*layout)(int64_t m);

    // Bytes of private memory that a thread needs for linear_columns.
    int64_t (*scratch_bytes)(const LinearCall& call);

    // One row of x to digits. widened: k floats of private memory. lo, hi: k bytes each; hi is left alone
    // when the row has no high digit.
    RowScale (*quantize_row)(const void* x, int dtype, int64_t k, float threshold, float* widened, int8_t* lo,
                             int8_t* hi);

    // All rows of y, columns [begin, end); begin is a multiple of column_tile.
    void (*linear_columns)(const LinearCall& call, int64_t begin, int64_t end, void* scratch);
};

extern const KernelTable kScalarTable;
#if defined(LLMINT8_X86)
extern const KernelTable kAvx2Table;
#if defined(LLMINT8_AVXVNNI)
extern const KernelTable kAvxVnniTable;
#endif
extern const KernelTable kAvx512VnniTable;
#if defined(LLMINT8_AMX)
extern const KernelTable kAmxTable;
#endif
#elif defined(LLMINT8_ARM64)
extern const KernelTable kNeonTable;
extern const KernelTable kNeonDotTable;
#endif

}  // namespace llmint8
