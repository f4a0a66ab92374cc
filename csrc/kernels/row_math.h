// A row of activations to digits: docs/numerics.md, "Activations", as plain loops that the compiler
// vectorises. Internal linkage, as in float_bits.h and for the same reason. Compile with -ffp-contract=off: a
// fused multiply-add would round once where the contract rounds twice.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "kernel_table.h"
#include "kernels/float_bits.h"

namespace llmint8 {
namespace {

constexpr float kTiny = 0x1p-100f;         // rows below this are zero: 127 / amax must stay finite
constexpr float kCodeMax = 127.0f;         // largest code
constexpr float kOutlierMax = 32512.0f;    // 127 * 256: both digits fit int8
constexpr float kMagnitudeMax = 32767.0f;  // scale of the automatic rule's integers
constexpr int64_t kAutoFactor = 8;         // an outlier exceeds this many times the mean magnitude

// Rows as the loops below read them: an element as a float, widened again in each loop, which costs less than
// to store it.
struct FloatRow {
    LLMINT8_INLINE float operator[](int64_t i) const { return x[i]; }
    const float* x;
};
struct BfloatRow {
    LLMINT8_INLINE float operator[](int64_t i) const { return bfloat_to_float(x[i]); }
    const uint16_t* x;
};

// Bits of the largest magnitudes; magnitudes order like their bits, and NaN and infinity come last.
struct Largest {
    int32_t all, normal;  // normal: of the elements that are no outliers
};

template <class Row>
inline int32_t largest_bits(Row x, int64_t k) {
    int32_t largest = 0;
    for (int64_t i = 0; i < k; ++i) {
        const int32_t bits = magnitude_bits(x[i]);
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

// By the paper's rule: normal elements are below a bound.
template <class Row>
inline Largest largest_by_bound(Row x, int64_t k, int32_t bound) {
    Largest largest{0, 0};
    for (int64_t i = 0; i < k; ++i) {
        const int32_t bits = magnitude_bits(x[i]), normal = bits < bound ? bits : 0;
        largest.all = bits > largest.all ? bits : largest.all;
        largest.normal = normal > largest.normal ? normal : largest.normal;
    }
    return largest;
}

// By the automatic rule: p * k > 8 * sum(p), which for integers is p > floor(8 * sum(p) / k).
template <class Row>
inline int32_t largest_bits_auto(Row x, int64_t k, float amax) {
    const float factor = kMagnitudeMax / amax;
    int64_t sum = 0;
    for (int64_t begin = 0; begin < k; begin += 32768) {  // 32768 * 32767 fits int32, which vectorises
        const int64_t end = begin + 32768 < k ? begin + 32768 : k;
        int32_t part = 0;
        for (int64_t i = begin; i < end; ++i) part += round_half_even(magnitude(x[i]) * factor);
        sum += part;
    }
    const int32_t bound = static_cast<int32_t>(kAutoFactor * sum / k);
    int32_t largest = 0;
    for (int64_t i = 0; i < k; ++i) {
        const int32_t p = round_half_even(magnitude(x[i]) * factor);
        const int32_t normal = p > bound ? 0 : magnitude_bits(x[i]);
        largest = normal > largest ? normal : largest;
    }
    return largest;
}

// q = rint(x * inverse) where no element is an outlier: one digit. Returns the sum.
template <class Row>
inline int32_t to_digits(Row x, int64_t k, float inverse, int8_t* lo) {
    int32_t sum = 0;
    for (int64_t i = 0; i < k; ++i) {
        const int32_t q = round_half_even(x[i] * inverse);
        lo[i] = static_cast<int8_t>(q);
        sum += q;
    }
    return sum;
}

// The same in two digits, q = lo + 256 * hi. Returns the sums.
template <class Row>
inline RowScale to_two_digits(Row x, int64_t k, float inverse, int8_t* lo, int8_t* hi) {
    int32_t hi_sum = 0, sum = 0;  // |q| <= 32512 and k <= 131072: modulo 2^32 (-fwrapv), the difference fits
    for (int64_t i = 0; i < k; ++i) {
        const int32_t q = round_half_even(x[i] * inverse), high = (q + 128) >> 8;
        lo[i] = static_cast<int8_t>(q);
        hi[i] = static_cast<int8_t>(high);
        hi_sum += high;
        sum += q;
    }
    return {0.0f, sum - 256 * hi_sum, hi_sum, true};
}

// docs/numerics.md, "Activations". hi is written if the row has high digits.
template <class Row>
inline RowScale quantize(Row x, int64_t k, float threshold, int8_t* lo, int8_t* hi) {
    if (k <= 0) return {0.0f, 0, 0, false};
    Largest largest;
    if (threshold > 0) {
        largest = largest_by_bound(x, k, magnitude_bits(threshold));
    } else {
        largest.normal = largest.all = largest_bits(x, k);
    }
    const float amax = from_bits(largest.all);
    const bool finite = largest.all < 0x7f800000;
    if (!finite || amax < kTiny) {
        std::memset(lo, 0, static_cast<size_t>(k));
        return {finite ? 0.0f : std::numeric_limits<float>::quiet_NaN(), 0, 0, false};
    }
    if (threshold < 0) largest.normal = largest_bits_auto(x, k, amax);
    const float normal = from_bits(largest.normal), by_outlier = kOutlierMax / amax;
    const float by_normal = normal < kTiny ? by_outlier : kCodeMax / normal;
    const float inverse = by_normal < by_outlier ? by_normal : by_outlier;
    RowScale scale{0.0f, 0, 0, false};
    if (largest.normal == largest.all) {
        scale.lo_sum = to_digits(x, k, inverse, lo);
    } else {
        scale = to_two_digits(x, k, inverse, lo, hi);
    }
    scale.scale = 1.0f / inverse;
    return scale;
}

inline RowScale quantize_row(const void* x, int dtype, int64_t k, float threshold, float* widened, int8_t* lo,
                             int8_t* hi) {
    if (dtype == LLMINT8_FLOAT32)
        return quantize(FloatRow{static_cast<const float*>(x)}, k, threshold, lo, hi);
    if (dtype == LLMINT8_BFLOAT16) {
        return quantize(BfloatRow{static_cast<const uint16_t*>(x)}, k, threshold, lo, hi);
    }
    widen(x, dtype, k, widened);
    return quantize(FloatRow{widened}, k, threshold, lo, hi);
}

}  // namespace
}  // namespace llmint8
