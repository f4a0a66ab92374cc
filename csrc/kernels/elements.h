// Element types as types: a kernel is written once and instantiated for float32, float16 and bfloat16.
// Internal linkage, as in float_bits.h and for the same reason.
#pragma once

#include "kernels/float_bits.h"

namespace llmint8 {
namespace {

// The same value, every NaN the canonical quiet one.
inline float canonical(float value) {
    return from_bits(magnitude_bits(value) > 0x7f800000 ? 0x7fc00000u : to_bits(value));
}

struct Float32 {
    using Storage = float;
    static float widen(Storage value) { return value; }
    static Storage narrow(float value) { return canonical(value); }
};

struct Float16 {
    using Storage = uint16_t;
    static float widen(Storage value) { return half_to_float(value); }
    static Storage narrow(float value) { return float_to_half(canonical(value)); }
};

struct Bfloat16 {
    using Storage = uint16_t;
    static float widen(Storage value) { return bfloat_to_float(value); }
    static Storage narrow(float value) { return float_to_bfloat(canonical(value)); }
};

// Rounded to the element type.
template <class Element>
inline float rounded(float value) {
    return Element::widen(Element::narrow(value));
}

// What is tiny among bfloat16 counts as zero in attention (docs/numerics.md, "Decoder").
constexpr float kSpeck = 0x1p-50f;

inline float without_speck(float value) {
    return magnitude(value) < kSpeck ? 0.0f : value;
}

// Calls body with the element type of a dtype.
template <class Body>
inline void with_element(int dtype, const Body& body) {
    if (dtype == LLMINT8_FLOAT32) {
        body(Float32{});
    } else if (dtype == LLMINT8_FLOAT16) {
        body(Float16{});
    } else {
        body(Bfloat16{});
    }
}

}  // namespace
}  // namespace llmint8
