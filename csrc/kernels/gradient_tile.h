// The gradient of the input: each sum runs over the output features in ascending order, one product and one
// sum at a time, so every vector width and every number of rows gives the same bits.
//
// A block of weight rows becomes floats for some columns, [feature][column], and meets all rows of the chunk
// from the cache; tiles of sums stay in registers. Scales are in the rows already (scale_rows).
// A file that includes this defines LLMINT8_VECTOR_BYTES, see lanes.h. Internal linkage, as there.
#pragma once

#include "gradient.h"
#include "kernels/float_bits.h"
#include "kernels/lanes.h"

namespace llmint8 {
namespace {

// As many as there are registers for, beside two of the weight: of 16, and of 32 with AVX-512.
constexpr int kTileRows = LLMINT8_VECTOR_BYTES == 16 ? 2 : LLMINT8_VECTOR_BYTES == 32 ? 6 : 12;
constexpr int64_t kFeatures = 256;  // output features of a block of the weight
constexpr int kPanels = kGradientColumns / kLanes;

// No functions of <algorithm> here: the linker would keep one copy of each, of any file's instructions.
inline int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

struct GradientScratch {
    GradientScratch(void* memory)
        : block(static_cast<float*>(memory)), sums(block + kFeatures * kGradientColumns) {}

    float* block;  // [panel][feature of the block][16]
    float* sums;   // [row][32]
};

int64_t gradient_scratch_bytes(const GradientCall& call, int64_t rows) {
    const int64_t sums = (kFeatures + rows) * kGradientColumns, floats = sums > call.n ? sums : call.n;
    return (floats * static_cast<int64_t>(sizeof(float)) + 63) / 64 * 64;
}

void scale_rows(const GradientCall& call, const float* scales, int64_t begin, int64_t end, void* scratch,
                float* tile) {
    const int64_t rows = end - begin, bytes = call.dtype == LLMINT8_FLOAT32 ? 4 : 2;
    float* wide = static_cast<float*>(scratch);
    for (int64_t r = 0; r < rows; ++r) {
        widen(static_cast<const char*>(call.grad) + (begin + r) * call.n * bytes, call.dtype, call.n, wide);
        for (int64_t i = 0; i < call.n; ++i) tile[i * rows + r] = wide[i] * scales[i];
    }
}

// Weights [first, last) x [begin, end) as floats without their scale; columns past the end are zero.
void widen_block(const GradientCall& call, int64_t first, int64_t last, int64_t begin, int64_t end,
                 float* block) {
    const int32_t* const outliers_end = call.outlier_cols + call.outliers;
    const int32_t* own = call.outlier_cols;
    while (own != outliers_end && *own < begin) ++own;
    for (int64_t n = first; n < last; ++n) {
        float row[kGradientColumns] = {};
        const int8_t* codes = call.weight + n * call.k + begin;
        if (end - begin == kGradientColumns) {
            for (int64_t c = 0; c < kGradientColumns; ++c) row[c] = codes[c];
        } else {
            for (int64_t c = 0; c < end - begin; ++c) row[c] = codes[c];
        }
        const int8_t* low = call.weight_low + n * call.outliers + (own - call.outlier_cols);
        for (const int32_t* at = own; at != outliers_end && *at < end; ++at) {
            row[*at - begin] += static_cast<float>(*low++) / 256.0f;
        }
        for (int p = 0; p < kPanels; ++p) {
            std::memcpy(block + (p * kFeatures + n - first) * kLanes, row + p * kLanes,
                        kLanes * sizeof(float));
        }
    }
}

LLMINT8_INLINE void load_part(const float* from, Vector& part) {
    std::memcpy(&part, from, sizeof part);
}

// Adds the products of a block to the sums of R rows and sixteen columns. Vectors one by one, not as Lanes:
// GCC would write whole arrays of them back to memory in each round.
template <int R>
void add_block(const float* rows, const float* panel, int64_t features, float* sums) {
    Vector acc[R][kParts];
    for (int r = 0; r < R; ++r) {
        for (int p = 0; p < kParts; ++p) load_part(sums + r * kGradientColumns + p * kVectorLanes, acc[r][p]);
    }
    for (int64_t n = 0; n < features; ++n, rows += R, panel += kLanes) {
        Vector weight[kParts];
        for (int p = 0; p < kParts; ++p) load_part(panel + p * kVectorLanes, weight[p]);
        for (int r = 0; r < R; ++r) {
            for (int p = 0; p < kParts; ++p) acc[r][p] += rows[r] * weight[p];
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int p = 0; p < kParts; ++p) {
            const Vector sum = acc[r][p];
            std::memcpy(sums + r * kGradientColumns + p * kVectorLanes, &sum, sizeof sum);
        }
    }
}

// Calls add_block with the number of rows as a constant.
template <int R>
void add_block_of(int64_t count, const float* rows, const float* panel, int64_t features, float* sums) {
    if constexpr (R > 0) {
        if (count == R) return add_block<R>(rows, panel, features, sums);
        add_block_of<R - 1>(count, rows, panel, features, sums);
    }
}

void gradient_columns(const GradientCall& call, const ScaledRows& rows, int64_t begin, int64_t end,
                      void* memory) {
    const GradientScratch scratch(memory);
    std::memset(scratch.sums, 0, static_cast<size_t>(rows.count * kGradientColumns) * sizeof(float));
    for (int64_t first = 0; first < call.n; first += kFeatures) {
        const int64_t features = smaller(kFeatures, call.n - first);
        widen_block(call, first, first + features, begin, end, scratch.block);
        for (int64_t r = 0; r < rows.count; r += kTileRows) {
            const int64_t count = smaller(kTileRows, rows.count - r);
            const float* tile = rows.values + r * call.n + first * count;
            for (int p = 0; p < kPanels; ++p) {
                add_block_of<kTileRows>(count, tile, scratch.block + p * kFeatures * kLanes, features,
                                        scratch.sums + r * kGradientColumns + p * kLanes);
            }
        }
    }
    const int64_t bytes = call.dtype == LLMINT8_FLOAT32 ? 4 : 2;
    for (int64_t r = 0; r < rows.count; ++r) {
        float* sums = scratch.sums + r * kGradientColumns;
        for (int64_t c = 0; c < kGradientColumns; ++c) {
            sums[c] = from_bits(magnitude_bits(sums[c]) > 0x7f800000 ? 0x7fc00000u : to_bits(sums[c]));
        }
        narrow(sums, call.dtype, end - begin,
               static_cast<char*>(call.grad_input) + ((rows.begin + r) * call.k + begin) * bytes);
    }
}

constexpr GradientKernels kGradientKernels = {kTileRows, gradient_scratch_bytes, scale_rows,
                                              gradient_columns};

}  // namespace
}  // namespace llmint8
