// The exponential and the activations of docs/numerics.md, "Decoder", as sums and products that every
// instruction set rounds alike; loops over them vectorise. Compile with -ffp-contract=off.
// Internal linkage, as in float_bits.h and for the same reason.
#pragma once

#include "kernels/elements.h"

namespace llmint8 {
namespace {

constexpr float kExpLowest = -87.0f, kExpHighest = 88.0f;
constexpr float kLog2E = 0x1.715476p+0f, kLn2High = 0x1.63p-1f, kLn2Low = -0x1.bd0106p-13f;
constexpr float kSqrtHalf = 0x1.6a09e6p-1f;
constexpr float kGeluTanhScale = 0x1.988454p+0f, kGeluTanhCubic = 0x1.6e4e26p-5f;
constexpr float kErfcPolynomial[] = {-1.2654201984405518f,  0.9980717897415161f,  0.39142826199531555f,
                                     0.011855486780405045f, 0.06776737421751022f, -0.2047463059425354f,
                                     -0.5465987324714661f,  1.0449073314666748f,  -0.6335616707801819f,
                                     0.13629665970802307f};

// Of a number within the two bounds, or NaN.
inline float exponential_within(float x) {
    const float scaled = x * kLog2E + kRoundMagic, n = scaled - kRoundMagic;
    const float r = (x - n * kLn2High) - n * kLn2Low;
    float value = 0.0013814467238262296f;
    value = value * r + 0.008368780836462975f;
    value = value * r + 0.04166839271783829f;
    value = value * r + 0.1666651964187622f;
    value = value * r + 0.4999999403953552f;
    value = (value * (r * r) + r) + 1.0f;
    const uint32_t power = (to_bits(scaled) - kRoundBits + 127u) << 23;
    return value * from_bits(power);
}

inline float exponential(float x) {
    float clamped = x < kExpLowest ? kExpLowest : x;
    clamped = x > kExpHighest ? kExpHighest : clamped;
    const float value = exponential_within(clamped);
    return x < kExpLowest ? 0.0f : value;
}

struct Silu {
    static float apply(float x) { return x / (exponential(-x) + 1.0f); }
};

struct GeluTanh {
    static float apply(float x) {
        const float u = ((x * x) * x * kGeluTanhCubic + x) * kGeluTanhScale;
        return x / (exponential(-u) + 1.0f);
    }
};

struct Gelu {
    static float apply(float x) {
        const float z = magnitude(x) * kSqrtHalf, t = 1.0f / (z * 0.5f + 1.0f);
        float p = kErfcPolynomial[9];
        for (int i = 8; i >= 0; --i) p = p * t + kErfcPolynomial[i];
        const float tail = exponential(p - z * z) * t * 0.5f;
        return x * (x < 0 ? tail : 1.0f - tail);
    }
};

}  // namespace
}  // namespace llmint8
