// Float arithmetic of a row, written once as plain loops and vectorised by the compiler in every kernel file.
//
// Everything here has internal linkage on purpose: the files that include it are compiled for different
// instruction sets, and a shared inline function would let the linker keep the wrong copy.
// Compile with -ffp-contract=off: a fused multiply-add would round once where the contract rounds twice.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernel_table.h"

namespace llmint8 {
namespace {

constexpr float kTiny = 0x1p-100f;          // rows below this are zero: 127 / amax must stay finite
constexpr float kCodeMax = 127.0f;          // largest code
constexpr float kOutlierMax = 32512.0f;     // 127 * 256: both digits fit int8
constexpr float kMagnitudeMax = 32767.0f;   // scale of the automatic rule's integers
constexpr int64_t kAutoFactor = 8;          // an outlier exceeds this many times the mean magnitude
constexpr float kRoundMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds |v| < 2^22 half to even

inline uint32_t to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t magnitude_bits(float value) {
    return to_bits(value) & 0x7fffffffu;
}

inline int32_t round_half_even(float value) {
    return static_cast<int32_t>(to_bits(value + kRoundMagic) - to_bits(kRoundMagic));
}

inline float half_to_float(uint16_t half) {
    const uint32_t magnitude = (half & 0x7fffu) << 13;
    // The product rebiases the exponent and normalises subnormals; infinity and NaN get their exponent back.
    uint32_t bits = to_bits(from_bits(magnitude) * 0x1p112f);
    bits = magnitude >= 0x0f800000u ? bits | 0x7f800000u : bits;
    return from_bits(bits | (half & 0x8000u) << 16);
}

inline uint16_t float_to_half(float value) {
    const uint32_t magnitude = magnitude_bits(value), sign = (to_bits(value) >> 16) & 0x8000u;
    const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Below 2^-14 a half counts in steps of 2^-24, and adding 0.5 rounds a float to just those.
    const uint32_t subnormal = to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f);
    uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x47800000u ? 0x7c00u : half;
    half = magnitude > 0x7f800000u ? 0x7e00u : half;
    return static_cast<uint16_t>(half | sign);
}

inline float bfloat_to_float(uint16_t bfloat) {
    return from_bits(static_cast<uint32_t>(bfloat) << 16);
}

inline uint16_t float_to_bfloat(float value) {  // value is no NaN but the canonical one, which stays as it is
    const uint32_t bits = to_bits(value);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline void widen(const void* x, int dtype, int64_t count, float* out) {
    if (dtype == LLMINT8_FLOAT32) {
        std::memcpy(out, x, static_cast<size_t>(count) * sizeof(float));
    } else if (dtype == LLMINT8_FLOAT16) {
        const uint16_t* from = static_cast<const uint16_t*>(x);
        for (int64_t i = 0; i < count; ++i) out[i] = half_to_float(from[i]);
    } else {
        const uint16_t* from = static_cast<const uint16_t*>(x);
        for (int64_t i = 0; i < count; ++i) out[i] = bfloat_to_float(from[i]);
    }
}

inline void narrow(const float* y, int dtype, int64_t count, void* out) {
    if (dtype == LLMINT8_FLOAT32) {
        std::memcpy(out, y, static_cast<size_t>(count) * sizeof(float));
    } else if (dtype == LLMINT8_FLOAT16) {
        uint16_t* to = static_cast<uint16_t*>(out);
        for (int64_t i = 0; i < count; ++i) to[i] = float_to_half(y[i]);
    } else {
        uint16_t* to = static_cast<uint16_t*>(out);
        for (int64_t i = 0; i < count; ++i) to[i] = float_to_bfloat(y[i]);
    }
}

// Bits of the largest magnitude; magnitudes order like their bits, and NaN and infinity come last.
inline uint32_t largest_bits(const float* x, int64_t k) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < k; ++i) {
        const uint32_t bits = magnitude_bits(x[i]);
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

// Bits of the largest magnitude below a bound: the normal elements of the paper's rule.
inline uint32_t largest_bits_below(const float* x, int64_t k, uint32_t bound) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < k; ++i) {
        const uint32_t bits = magnitude_bits(x[i]), normal = bits < bound ? bits : 0;
        largest = normal > largest ? normal : largest;
    }
    return largest;
}

// The same for the automatic rule: p * k > 8 * sum(p), which for integers is p > floor(8 * sum(p) / k).
inline uint32_t largest_bits_auto(const float* x, int64_t k, float amax) {
    const float factor = kMagnitudeMax / amax;
    int64_t sum = 0;
    for (int64_t begin = 0; begin < k; begin += 32768) {  // 32768 * 32767 fits int32, which vectorises
        const int64_t end = begin + 32768 < k ? begin + 32768 : k;
        int32_t part = 0;
        for (int64_t i = begin; i < end; ++i)
            part += round_half_even(from_bits(magnitude_bits(x[i])) * factor);
        sum += part;
    }
    const int32_t bound = static_cast<int32_t>(kAutoFactor * sum / k);
    uint32_t largest = 0;
    for (int64_t i = 0; i < k; ++i) {
        const uint32_t bits = magnitude_bits(x[i]);
        const uint32_t normal = round_half_even(from_bits(bits) * factor) > bound ? 0 : bits;
        largest = normal > largest ? normal : largest;
    }
    return largest;
}

// docs/numerics.md, "Activations"; x is the row as floats.
inline RowScale quantize_floats(const float* x, int64_t k, float threshold, int8_t* lo, int8_t* hi) {
    const uint32_t amax_bits = largest_bits(x, k);
    const float amax = from_bits(amax_bits);
    const bool finite = amax_bits < 0x7f800000u;
    if (!finite || amax < kTiny) {
        std::memset(lo, 0, static_cast<size_t>(k));
        std::memset(hi, 0, static_cast<size_t>(k));
        return {finite ? 0.0f : std::numeric_limits<float>::quiet_NaN(), 0, 0, false};
    }
    uint32_t normal_bits = amax_bits;
    if (threshold > 0) {
        normal_bits = amax < threshold ? amax_bits : largest_bits_below(x, k, to_bits(threshold));
    } else if (threshold < 0) {
        normal_bits = largest_bits_auto(x, k, amax);
    }
    const float normal = from_bits(normal_bits), by_outlier = kOutlierMax / amax;
    const float by_normal = normal < kTiny ? by_outlier : kCodeMax / normal;
    const float inverse = by_normal < by_outlier ? by_normal : by_outlier;
    int32_t lo_sum = 0, hi_sum = 0;
    for (int64_t i = 0; i < k; ++i) {
        const int32_t q = round_half_even(x[i] * inverse);
        const int32_t low = static_cast<int8_t>(q), high = (q - low) >> 8;
        lo[i] = static_cast<int8_t>(low);
        hi[i] = static_cast<int8_t>(high);
        lo_sum += low;
        hi_sum += high;
    }
    return {1.0f / inverse, lo_sum, hi_sum, normal_bits != amax_bits};
}

inline RowScale quantize_row(const void* x, int dtype, int64_t k, float threshold, float* widened, int8_t* lo,
                             int8_t* hi) {
    if (dtype == LLMINT8_FLOAT32) return quantize_floats(static_cast<const float*>(x), k, threshold, lo, hi);
    widen(x, dtype, k, widened);
    return quantize_floats(widened, k, threshold, lo, hi);
}

// The scales and biases of one tile of columns, widened; columns past the end are zero.
template <int kColumns>
struct ColumnScales {
    ColumnScales(const LinearCall& call, int64_t begin, int64_t end) : has_bias(call.bias != nullptr) {
        const int64_t count = end - begin;
        for (int64_t i = 0; i < count; ++i) scale[i] = call.absmax[begin + i] / kCodeMax;
        if (has_bias) {
            const int64_t bytes = call.bias_dtype == LLMINT8_FLOAT32 ? 4 : 2;
            widen(static_cast<const char*>(call.bias) + begin * bytes, call.bias_dtype, count, bias);
        }
    }

    bool has_bias;
    float scale[kColumns] = {};
    float bias[kColumns] = {};
};

// docs/numerics.md, "Epilogue": one row of one tile. high: null when the row has no high digit.
template <int kColumns>
inline void finish_row(const LinearCall& call, const ColumnScales<kColumns>& columns, int64_t row,
                       int64_t begin, int64_t end, const int32_t* low, const int32_t* high) {
    const float row_scale = call.rows->row(row).scale.scale;
    float y[kColumns];
    if (high == nullptr) {
        for (int i = 0; i < kColumns; ++i) y[i] = static_cast<float>(low[i]) * (row_scale * columns.scale[i]);
    } else {
        for (int i = 0; i < kColumns; ++i) {
            const float t = static_cast<float>(high[i]) * 256.0f + static_cast<float>(low[i]);
            y[i] = t * (row_scale * columns.scale[i]);
        }
    }
    if (columns.has_bias) {
        for (int i = 0; i < kColumns; ++i) y[i] += columns.bias[i];
    }
    for (int i = 0; i < kColumns; ++i) {
        y[i] = from_bits(magnitude_bits(y[i]) > 0x7f800000u ? 0x7fc00000u : to_bits(y[i]));
    }
    const int64_t bytes = call.dtype == LLMINT8_FLOAT32 ? 4 : 2;
    char* to = static_cast<char*>(call.y) + (row * call.n + begin) * bytes;
    if (end - begin == kColumns) {
        narrow(y, call.dtype, kColumns, to);
    } else {
        narrow(y, call.dtype, end - begin, to);
    }
}

}  // namespace
}  // namespace llmint8
