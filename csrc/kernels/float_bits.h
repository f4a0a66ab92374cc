// Floats as bits: conversions between the element types, rounding, magnitudes that compare as integers.
// Plain loops, vectorised by the compiler in every kernel file.
//
// Everything here has internal linkage on purpose: the files that include it are compiled for different
// instruction sets, and a shared inline function would let the linker keep the wrong copy.
#pragma once

#include <cstdint>
#include <cstring>

#include "llmint8.h"

// Not inlined where the count is a constant: GCC would unroll the loop before it could vectorise it.
#define LLMINT8_NOINLINE [[maybe_unused]] __attribute__((noinline))

namespace llmint8 {
namespace {

constexpr float kRoundMagic = 12582912.0f;   // 1.5 * 2^23: adding it rounds |v| < 2^22 half to even
constexpr uint32_t kRoundBits = 0x4b400000;  // of the same

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

// Signed, because AVX2 compares and selects nothing else; no magnitude has the sign bit.
inline int32_t magnitude_bits(float value) {
    return static_cast<int32_t>(to_bits(value) & 0x7fffffffu);
}

inline float magnitude(float value) {
    return from_bits(to_bits(value) & 0x7fffffffu);
}

// Rounded half to even, and kRoundBits more, which do not change the low byte and come off a sum at once.
inline uint32_t round_to_bits(float value) {
    return to_bits(value + kRoundMagic);
}

inline int32_t round_half_even(float value) {
    return static_cast<int32_t>(round_to_bits(value) - kRoundBits);
}

// A sum of `count` such bits, without those; modulo 2^32, the true sum fits.
inline int32_t rounded_sum(uint32_t bits, int64_t count) {
    return static_cast<int32_t>(bits - static_cast<uint32_t>(count) * kRoundBits);
}

inline float half_to_float(uint16_t half) {
    const uint32_t magnitude = (half & 0x7fffu) << 13;
    // The product rebiases the exponent and normalises subnormals; infinity and NaN get their exponent back.
    uint32_t bits = to_bits(from_bits(magnitude) * 0x1p112f);
    bits = magnitude >= 0x0f800000u ? bits | 0x7f800000u : bits;
    return from_bits(bits | (half & 0x8000u) << 16);
}

inline uint16_t float_to_half(float value) {
    const int32_t bits = magnitude_bits(value), sign = static_cast<int32_t>(to_bits(value) >> 16) & 0x8000;
    const int32_t normal = (bits - (112 << 23) + 0xfff + ((bits >> 13) & 1)) >> 13;
    // Below 2^-14 a half counts in steps of 2^-24, and adding 0.5 rounds a float to just those.
    const int32_t subnormal = static_cast<int32_t>(to_bits(magnitude(value) + 0.5f) - to_bits(0.5f));
    int32_t half = bits < 0x38800000 ? subnormal : normal;
    half = bits >= 0x47800000 ? 0x7c00 : half;
    half = bits > 0x7f800000 ? 0x7e00 : half;
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

LLMINT8_NOINLINE void narrow(const float* y, int dtype, int64_t count, void* out) {
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

}  // namespace
}  // namespace llmint8
