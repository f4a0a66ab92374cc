// What a decoder does to single rows between its matrix products: docs/numerics.md, "Decoder".
// Internal linkage, as in float_bits.h and for the same reason.
#pragma once

#include "decoder_kernels.h"
#include "kernels/float_math.h"
#include "kernels/lanes.h"
#include "llmint8_decoder.h"

namespace llmint8 {
namespace {

// y = weight * round(x / root mean square). wide: h floats of private memory.
void rms_norm(int dtype, const void* x, const void* weight, int64_t h, float epsilon, float* wide, void* y) {
    with_element(dtype, [=](auto element) {
        using Element = decltype(element);
        using Storage = typename Element::Storage;
        const Storage* from = static_cast<const Storage*>(x);
        float* squares = wide;
        for (int64_t i = 0; i < h; ++i) squares[i] = Element::widen(from[i]) * Element::widen(from[i]);
        const float mean = sum_floats(squares, h) / static_cast<float>(h);
        const float inverse = 1.0f / __builtin_sqrtf(mean + epsilon);
        const Storage* factor = static_cast<const Storage*>(weight);
        Storage* to = static_cast<Storage*>(y);
        for (int64_t i = 0; i < h; ++i) {
            const float normed = rounded<Element>(Element::widen(from[i]) * inverse);
            to[i] = Element::narrow(Element::widen(factor[i]) * normed);
        }
    });
}

// y = x cos + (-second half of x, first half of x) sin; d is even.
void rotate(int dtype, const void* x, const void* cos, const void* sin, int64_t d, void* y) {
    with_element(dtype, [=](auto element) {
        using Element = decltype(element);
        using Storage = typename Element::Storage;
        const int64_t half = d / 2;
        const Storage *first = static_cast<const Storage*>(x), *second = first + half;
        const Storage *c = static_cast<const Storage*>(cos), *s = static_cast<const Storage*>(sin);
        Storage* __restrict to = static_cast<Storage*>(y);
        const auto product = [](Storage a, Storage b) {
            return rounded<Element>(Element::widen(a) * Element::widen(b));
        };
        for (int64_t i = 0; i < half; ++i)
            to[i] = Element::narrow(product(first[i], c[i]) - product(second[i], s[i]));
        for (int64_t i = 0; i < half; ++i) {
            to[half + i] = Element::narrow(product(second[i], c[half + i]) + product(first[i], s[half + i]));
        }
    });
}

// to += x.
void add(int dtype, const void* x, int64_t count, void* sums) {
    with_element(dtype, [=](auto element) {
        using Element = decltype(element);
        using Storage = typename Element::Storage;
        const Storage* __restrict from = static_cast<const Storage*>(x);
        Storage* to = static_cast<Storage*>(sums);
        for (int64_t i = 0; i < count; ++i) {
            to[i] = Element::narrow(Element::widen(to[i]) + Element::widen(from[i]));
        }
    });
}

template <class Element, class Activation>
void gate_rows(const void* up, int64_t count, void* gate) {
    using Storage = typename Element::Storage;
    const Storage* __restrict from = static_cast<const Storage*>(up);
    Storage* to = static_cast<Storage*>(gate);
    for (int64_t i = 0; i < count; ++i) {
        const float active = rounded<Element>(Activation::apply(Element::widen(to[i])));
        to[i] = Element::narrow(active * Element::widen(from[i]));
    }
}

// gate = activation(gate) * up.
void gate(int dtype, int activation, const void* up, int64_t count, void* gate) {
    with_element(dtype, [=](auto element) {
        using Element = decltype(element);
        if (activation == LLMINT8_SILU) {
            gate_rows<Element, Silu>(up, count, gate);
        } else if (activation == LLMINT8_GELU_TANH) {
            gate_rows<Element, GeluTanh>(up, count, gate);
        } else {
            gate_rows<Element, Gelu>(up, count, gate);
        }
    });
}

// Rows of d elements, d_padded floats apart, zeros behind.
void widen_rows(int dtype, const void* x, int64_t rows, int64_t d, int64_t d_padded, float* to) {
    if (d == d_padded) return widen(x, dtype, rows * d, to);
    const int64_t bytes = dtype == LLMINT8_FLOAT32 ? 4 : 2;
    for (int64_t r = 0; r < rows; ++r, to += d_padded) {
        widen(static_cast<const char*>(x) + r * d * bytes, dtype, d, to);
        for (int64_t i = d; i < d_padded; ++i) to[i] = 0.0f;
    }
}

}  // namespace
}  // namespace llmint8
