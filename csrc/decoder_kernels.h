// What an instruction set provides for whole decoders beside its int8 products: float kernels, as a struct of
// function pointers. Three sets of vector widths serve all instruction sets.
#pragma once

#include <cstdint>

#include "fourbit.h"
#include "kernel_table.h"
#include "key_ranges.h"

namespace llmint8 {

constexpr int64_t kFloatLanes = 16;  // rows of floats are padded with zeros to a multiple of this

constexpr int64_t pad_floats(int64_t count) {
    return round_up(count, kFloatLanes);
}

// Some heads that share their keys and values, for consecutive queries of one sequence.
struct AttentionTask {
    int dtype;
    int64_t head_dim, heads, queries;
    int64_t position;  // of the first query among the keys
    int64_t window;    // keys that a query sees, itself included; 0 for all before it
    float scaling;
    const void* query;        // element [t * query_stride + head * head_dim + i]
    int64_t query_stride;     // in elements, as all strides
    const void *key, *value;  // element [position * head_dim + i]
    const KeyRange* ranges;   // ascending, apart from one another
    int64_t range_count;
    void* out;  // laid out as the queries
};

// A linear layer whose weight is multiplied as floats.
struct FloatLinearCall {
    const float* x;  // [m, padded_k], zeros behind k
    int64_t m, k, padded_k, n;
    const void* weight;  // [n, k] of dtype, or null
    const void* bias;    // [n] of bias_dtype, or null
    int bias_dtype, dtype;
    void* y;                       // [m, n] of dtype
    const FourbitWeight* fourbit;  // in place of the weight, or null
};

struct DecoderKernels {
    // y = weight * round(x / root mean square). wide: h floats of private memory.
    void (*rms_norm)(int dtype, const void* x, const void* weight, int64_t h, float epsilon, float* wide,
                     void* y);

    // The rotary embedding of one head of d elements. y does not overlap x.
    void (*rotate)(int dtype, const void* x, const void* cos, const void* sin, int64_t d, void* y);

    // sums += x.
    void (*add)(int dtype, const void* x, int64_t count, void* sums);

    // gate = activation(gate) * up.
    void (*gate)(int dtype, int activation, const void* up, int64_t count, void* gate);

    // Rows of d elements as floats, d_padded apart, zeros behind d.
    void (*widen_rows)(int dtype, const void* x, int64_t rows, int64_t d, int64_t d_padded, float* to);

    // Bytes of private memory for a task of so many heads times queries, over so many keys; and the task.
    int64_t (*attention_bytes)(int64_t rows, int64_t head_dim, int64_t keys);
    void (*attend)(const AttentionTask& task, void* scratch);

    // Columns [begin, end) of a float linear layer, a tile at a time.
    int64_t float_column_tile;
    int64_t (*float_linear_bytes)(int64_t m, int64_t padded_k);
    void (*float_linear_columns)(const FloatLinearCall& call, int64_t begin, int64_t end, void* scratch);

    // Elements [first, first + count) of a 4-bit weight, as dtype.
    void (*fourbit_elements)(const FourbitWeight& weight, int64_t first, int64_t count, int dtype, void* to);
};

extern const DecoderKernels kBaselineDecoderKernels;
#if defined(LLMINT8_X86)
extern const DecoderKernels kAvx2DecoderKernels;
extern const DecoderKernels kAvx512DecoderKernels;
#if defined(LLMINT8_AMX)
extern const DecoderKernels kAmxDecoderKernels;
#endif
#endif

// Those that an instruction set can run.
const DecoderKernels& decoder_kernels(const KernelTable& table);

}  // namespace llmint8
