// The two halves of attention that are not dot products: weights from scores, and sums of values with them.
// Internal linkage, as in float_bits.h and for the same reason.
#pragma once

#include "kernels/float_math.h"
#include "kernels/lanes.h"

namespace llmint8 {
namespace {

// x *= factor; returns the larger of `largest` and all of x, ignoring NaN.
float scale_and_raise(float* x, int64_t count, float factor, float largest) {
    int64_t i = 0;
    if (count >= kLanes) {
        float all[kLanes];
        for (float& lane : all) lane = largest;
        Lanes most, scaled;
        most.load(all);
        for (; i + kLanes <= count; i += kLanes) {
            scaled.load(x + i);
            scaled.multiply(factor);
            scaled.store(x + i);
            most.raise(scaled);
        }
        most.store(all);
        for (const float lane : all) largest = lane > largest ? lane : largest;
    }
    for (; i < count; ++i) {
        x[i] *= factor;
        largest = x[i] > largest ? x[i] : largest;
    }
    return largest;
}

LLMINT8_NOINLINE void exponentials(float* x, int64_t count, float shift) {
    for (int64_t i = 0; i < count; ++i) x[i] = exponential(x[i] - shift);
}

// sums[r][i] += weights[r][j] * values[j][i] for kRows rows and kGroups * 16 elements, j ascending.
template <int kRows, int kGroups>
LLMINT8_INLINE void add_values(const float* const* weights, const float* values, int64_t d, int64_t count,
                               float* const* sums) {
    Lanes acc[kRows][kGroups];
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int g = 0; g < kGroups; ++g) acc[r][g].load(sums[r] + g * kLanes);
    }
    for (int64_t j = 0; j < count; ++j, values += d) {
        Lanes value[kGroups];
#pragma GCC unroll 4
        for (int g = 0; g < kGroups; ++g) value[g].load(values + g * kLanes);
#pragma GCC unroll 3
        for (int r = 0; r < kRows; ++r) {
            const float weight = weights[r][j];
#pragma GCC unroll 4
            for (int g = 0; g < kGroups; ++g) acc[r][g].add_product(weight, value[g]);
        }
    }
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int g = 0; g < kGroups; ++g) acc[r][g].store(sums[r] + g * kLanes);
    }
}

// The same for all d elements, a multiple of 16.
template <int kRows>
void add_value_rows(const float* const* weights, const float* values, int64_t d, int64_t count,
                    float* const* sums) {
    // Accumulators enough to hide an addition's latency, and as many as there are registers for.
    constexpr int kGroups = kRows == 1 || LLMINT8_VECTOR_BYTES == 64 ? 4 : 2;
    float* at[kRows];
    int64_t i = 0;
    for (; i + kGroups * kLanes <= d; i += kGroups * kLanes) {
        for (int r = 0; r < kRows; ++r) at[r] = sums[r] + i;
        add_values<kRows, kGroups>(weights, values + i, d, count, at);
    }
    for (; i < d; i += kLanes) {
        for (int r = 0; r < kRows; ++r) at[r] = sums[r] + i;
        add_values<kRows, 1>(weights, values + i, d, count, at);
    }
}

}  // namespace
}  // namespace llmint8
