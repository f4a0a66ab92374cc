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
// to store it, its magnitude, and this as an integer as wide as the element. Magnitudes order like these, and
// NaN and infinity come last.
struct FloatRow {
    using Magnitude = int32_t;
    static constexpr int kShift = 0;  // from a magnitude to the bits of a float
    LLMINT8_INLINE float operator[](int64_t i) const { return x[i]; }
    LLMINT8_INLINE float magnitude(int64_t i) const { return llmint8::magnitude(x[i]); }
    LLMINT8_INLINE int32_t bits(int64_t i) const { return magnitude_bits(x[i]); }
    const float* x;
};
struct BfloatRow {
    using Magnitude = int16_t;
    static constexpr int kShift = 16;
    LLMINT8_INLINE float operator[](int64_t i) const { return bfloat_to_float(x[i]); }
    LLMINT8_INLINE float magnitude(int64_t i) const { return bfloat_to_float(x[i] & 0x7fff); }
    LLMINT8_INLINE int16_t bits(int64_t i) const { return static_cast<int16_t>(x[i] & 0x7fff); }
    const uint16_t* x;
};

// Bits of the largest magnitudes, as floats.
struct Largest {
    int32_t all, normal;  // normal: of the elements that are no outliers
};

// Outliers have at least the bits of a bound.
template <class Row>
inline Largest largest_by_bound(Row x, int64_t k, int32_t bound_bits) {
    using Magnitude = typename Row::Magnitude;
    const int32_t below = (1 << Row::kShift) - 1;  // a bound between two elements is the next
    const auto bound = static_cast<Magnitude>((bound_bits >> Row::kShift) + ((bound_bits & below) != 0));
    Magnitude all = 0, normal = 0;
    for (int64_t i = 0; i < k; ++i) {
        const Magnitude bits = x.bits(i), kept = bits < bound ? bits : Magnitude{0};
        all = bits > all ? bits : all;
        normal = kept > normal ? kept : normal;
    }
    return {all << Row::kShift, normal << Row::kShift};
}

template <class Row>
inline int32_t largest_bits(Row x, int64_t k) {
    using Magnitude = typename Row::Magnitude;
    Magnitude largest = 0;
    for (int64_t i = 0; i < k; ++i) {
        const Magnitude bits = x.bits(i);
        largest = bits > largest ? bits : largest;
    }
    return largest << Row::kShift;
}

// The automatic rule's bound: p * k > 8 * sum(p), which for integers is p > floor(8 * sum(p) / k). Bits of
// the least float that is an outlier: p does not fall as the float rises, and a quotient is near enough to
// look from.
template <class Row>
inline int32_t automatic_bound(Row x, int64_t k, float amax) {
    const float factor = kMagnitudeMax / amax;
    int64_t sum = 0;
    for (int64_t begin = 0; begin < k; begin += 32768) {  // 32768 * 32767 fits int32, which vectorises
        const int64_t end = begin + 32768 < k ? begin + 32768 : k;
        uint32_t part = 0;
        for (int64_t i = begin; i < end; ++i) part += round_to_bits(x.magnitude(i) * factor);
        sum += rounded_sum(part, end - begin);
    }
    const auto most = static_cast<int32_t>(kAutoFactor * sum / k);
    if (most >= static_cast<int32_t>(kMagnitudeMax)) return to_bits(std::numeric_limits<float>::infinity());
    const auto is_outlier = [&](int32_t bits) { return round_half_even(from_bits(bits) * factor) > most; };
    auto bound = static_cast<int32_t>(to_bits((static_cast<float>(most) + 0.5f) / factor));
    while (!is_outlier(bound)) ++bound;
    while (is_outlier(bound - 1)) --bound;
    return bound;
}

// q = rint(x * inverse) where no element is an outlier: one digit. Returns the sum.
template <class Row>
inline int32_t to_digits(Row x, int64_t k, float inverse, int8_t* lo) {
    uint32_t sum = 0;
    for (int64_t i = 0; i < k; ++i) {
        const uint32_t q = round_to_bits(x[i] * inverse);
        lo[i] = static_cast<int8_t>(q);
        sum += q;
    }
    return rounded_sum(sum, k);
}

// The same in two digits, q = lo + 256 * hi. Returns the sums. kLong: a row whose low digits may have too
// large ones to be joint.
template <bool kLong, class Row>
inline RowScale to_two_digits(Row x, int64_t k, float inverse, int8_t* lo, int8_t* hi) {
    int32_t hi_sum = 0, sum = 0;  // |q| <= 32512 and k <= 131072: modulo 2^32 (-fwrapv), the difference fits
    int32_t lo_magnitudes = 0, hi_magnitudes = 0;
    for (int64_t i = 0; i < k; ++i) {
        const int32_t q = round_half_even(x[i] * inverse), high = (q + 128) >> 8;
        lo[i] = static_cast<int8_t>(q);
        hi[i] = static_cast<int8_t>(high);
        hi_sum += high;
        sum += q;
        hi_magnitudes += high < 0 ? -high : high;
        if (!kLong) continue;
        const int32_t low = q - 256 * high;
        lo_magnitudes += low < 0 ? -low : low;
    }
    return {0.0f, sum - 256 * hi_sum, hi_sum, true, can_join(kLong ? lo_magnitudes : 128 * k, hi_magnitudes)};
}

// docs/numerics.md, "Activations". hi is written if the row has high digits.
template <class Row>
inline RowScale quantize(Row x, int64_t k, float threshold, int8_t* lo, int8_t* hi) {
    if (k <= 0) return {0.0f, 0, 0, false, true};
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
        return {finite ? 0.0f : std::numeric_limits<float>::quiet_NaN(), 0, 0, false, true};
    }
    if (threshold < 0) largest = largest_by_bound(x, k, automatic_bound(x, k, amax));
    const float normal = from_bits(largest.normal), by_outlier = kOutlierMax / amax;
    const float by_normal = normal < kTiny ? by_outlier : kCodeMax / normal;
    const float inverse = by_normal < by_outlier ? by_normal : by_outlier;
    RowScale scale{0.0f, 0, 0, false, true};
    if (largest.normal == largest.all) {
        scale.lo_sum = to_digits(x, k, inverse, lo);
    } else if (can_join(128 * k, 0)) {
        scale = to_two_digits<false>(x, k, inverse, lo, hi);
    } else {
        scale = to_two_digits<true>(x, k, inverse, lo, hi);
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
