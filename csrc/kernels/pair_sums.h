// The products of attention, added in the order of docs/numerics.md, "Decoder": blocks of 32, in each a chain
// of the even and one of the odd elements. Internal linkage, as in float_bits.h and for the same reason.
#pragma once

#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "kernels/lanes.h"

namespace llmint8 {
namespace {

constexpr int64_t kPairBlock = 32;

// sum += a * b. kExact: float32 holds every such product exactly, so that one rounding is as good as two.
template <bool kExact>
LLMINT8_INLINE void add_product(float a, const Vector& b, Vector& sum) {
#if LLMINT8_VECTOR_BYTES == 64 && defined(__AVX512F__)
    if (kExact) {
        sum = reinterpret_cast<Vector>(
            _mm512_fmadd_ps(_mm512_set1_ps(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(sum)));
        return;
    }
#elif LLMINT8_VECTOR_BYTES == 32 && defined(__FMA__)
    if (kExact) {
        sum = reinterpret_cast<Vector>(
            _mm256_fmadd_ps(_mm256_set1_ps(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(sum)));
        return;
    }
#elif LLMINT8_VECTOR_BYTES == 16 && defined(__ARM_NEON)
    if (kExact) {
        sum = reinterpret_cast<Vector>(
            vfmaq_n_f32(reinterpret_cast<float32x4_t>(sum), reinterpret_cast<float32x4_t>(b), a));
        return;
    }
#endif
    sum += a * b;
}

// Rows of x, of d elements, times sixteen transposed keys (key_columns.h): out[r * out_stride + key]. d is a
// multiple of 32.
struct SixteenKeys {
    const float* x;
    int64_t x_stride;
    const float* keys;
    int64_t d;
    float* out;
    int64_t out_stride;

    template <bool kExact>
    void run(int64_t rows) const {
        constexpr int kMany = LLMINT8_VECTOR_BYTES == 64 ? 6 : 3;  // chains that the registers hold
        int64_t r = 0;
        for (; r + kMany <= rows; r += kMany) run_rows<kExact, kMany>(r);
        if (kMany > 3 && r + 3 <= rows) {
            run_rows<kExact, 3>(r);
            r += 3;
        }
        for (; r < rows; ++r) run_rows<kExact, 1>(r);
    }

  private:
    template <bool kExact, int kRows>
    LLMINT8_INLINE void run_rows(int64_t row) const {
        const float* const from = x + row * x_stride;
        for (int p = 0; p < kParts; ++p) {
            Vector total[kRows] = {};
            for (int64_t i = 0; i < d; i += kPairBlock) {
                Vector even[kRows] = {}, odd[kRows] = {};
#pragma GCC unroll 4
                for (int64_t j = i; j < i + kPairBlock; j += 2) {
                    const Vector left = vector_at(keys + j * kLanes, p);
                    const Vector right = vector_at(keys + (j + 1) * kLanes, p);
#pragma GCC unroll 6
                    for (int r = 0; r < kRows; ++r) {
                        add_product<kExact>(from[r * x_stride + j], left, even[r]);
                        add_product<kExact>(from[r * x_stride + j + 1], right, odd[r]);
                    }
                }
#pragma GCC unroll 6
                for (int r = 0; r < kRows; ++r) total[r] += even[r] + odd[r];
            }
            for (int r = 0; r < kRows; ++r) vector_at(out + (row + r) * out_stride, p) = total[r];
        }
    }
};

// sums[r * d + i] += weights[r * weight_stride + j] * values[j * d + i], summed over j < count, up to 32.
struct ValueBlock {
    const float* weights;
    int64_t weight_stride;
    const float* values;
    int64_t d, count;
    float* sums;

    template <bool kExact>
    void run(int64_t rows) const {
        constexpr int kMany = LLMINT8_VECTOR_BYTES == 16 ? 1 : 3;
        int64_t r = 0;
        for (; r + kMany <= rows; r += kMany) run_rows<kExact, kMany>(r);
        for (; r < rows; ++r) run_rows<kExact, 1>(r);
    }

  private:
    template <bool kExact, int kRows>
    void run_rows(int64_t row) const {
        // Vectors of elements, each with two chains for each row.
        constexpr int kVectors = LLMINT8_VECTOR_BYTES == 64 || kRows == 1 ? 4 : 2;
        int64_t i = 0;
        for (; i + kVectors * kVectorLanes <= d; i += kVectors * kVectorLanes) {
            add<kExact, kRows, kVectors>(row, i);
        }
        for (; i < d; i += kLanes) add<kExact, kRows, kParts>(row, i);
    }

    template <bool kExact, int kRows, int kVectors>
    LLMINT8_INLINE void add(int64_t row, int64_t i) const {
        Vector chain[2][kRows][kVectors] = {};
        const float *weight = weights + row * weight_stride, *value = values + i;
        int64_t j = 0;
        for (; j + 2 <= count; j += 2) {
            add_value<kExact>(weight + j, value + j * d, chain[0]);
            add_value<kExact>(weight + j + 1, value + (j + 1) * d, chain[1]);
        }
        if (j < count) add_value<kExact>(weight + j, value + j * d, chain[0]);
#pragma GCC unroll 3
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
                vector_at(sums + (row + r) * d + i, v) += chain[0][r][v] + chain[1][r][v];
            }
        }
    }

    template <bool kExact, int kRows, int kVectors>
    LLMINT8_INLINE void add_value(const float* weight, const float* value,
                                  Vector (&chain)[kRows][kVectors]) const {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            const Vector right = vector_at(value, v);
#pragma GCC unroll 3
            for (int r = 0; r < kRows; ++r)
                add_product<kExact>(weight[r * weight_stride], right, chain[r][v]);
        }
    }
};

}  // namespace
}  // namespace llmint8
