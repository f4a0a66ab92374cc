// Integer sums to outputs: docs/numerics.md, "Epilogue".
// Internal linkage, as in float_bits.h and for the same reason; no fused multiply-add, as in row_math.h.
#pragma once

#include <cstdint>

#include "kernel_table.h"
#include "kernels/row_math.h"

namespace llmint8 {
namespace {

// The scales and biases of one tile of columns, widened; columns past the end are zero.
template <int kColumns>
struct ColumnScales {
    ColumnScales() = default;
    ColumnScales(const LinearCall& call, int64_t begin, int64_t end) { set(call, begin, end); }

    void set(const LinearCall& call, int64_t begin, int64_t end) {
        has_bias = call.bias != nullptr;
        const int64_t count = end - begin;
        for (int64_t i = 0; i < count; ++i) scale[i] = call.absmax[begin + i] / kCodeMax;
        if (has_bias) {
            const int64_t bytes = call.bias_dtype == LLMINT8_FLOAT32 ? 4 : 2;
            widen(static_cast<const char*>(call.bias) + begin * bytes, call.bias_dtype, count, bias);
        }
    }

    bool has_bias = false;
    float scale[kColumns] = {};
    float bias[kColumns] = {};
};

// The sums of one row and one tile of columns. high: null when the row has no high digit. Offsets: what all
// sums have too much; modulo 2^32 (-fwrapv), the true sums fit.
struct DigitSums {
    const int32_t* low;
    const int32_t* high;
    int32_t low_offset, high_offset;
};

// A few outputs, as the compiler's own vectors: its loops over a count that it does not know took as long as
// the products of a short row. Never passed by value: the calling convention depends on the flags of the
// file.
#if defined(__aarch64__)
constexpr int kGroup = 4;  // a register, and panels of twelve columns
#elif defined(__AVX512F__)
constexpr int kGroup = 16;
#else
constexpr int kGroup = 8;
#endif
typedef float Floats __attribute__((vector_size(4 * kGroup)));
typedef int32_t Ints __attribute__((vector_size(4 * kGroup)));
typedef uint16_t Halves __attribute__((vector_size(2 * kGroup)));

LLMINT8_INLINE void widen_sums(const int32_t* sums, int32_t offset, Floats& y) {
    Ints whole;
    std::memcpy(&whole, sums, sizeof whole);
    y = __builtin_convertvector(whole - offset, Floats);
}

// high * 256 + low, times a power of two, which is exact.
LLMINT8_INLINE void widen_digits(const DigitSums& sums, int at, Floats& y) {
    widen_sums(sums.low + at, sums.low_offset, y);
    if (sums.high == nullptr) return;
    Floats high;
    widen_sums(sums.high + at, sums.high_offset, high);
    y = high * 256.0f + y;
}

// The same for sums with second digits of the weight, which count 1 / 256.
LLMINT8_INLINE void add_second_digits(const DigitSums& sums, int at, Floats& y) {
    Floats low;
    widen_sums(sums.low + at, sums.low_offset, low);
    low *= 0x1p-8f;
    if (sums.high != nullptr) {
        Floats high;
        widen_sums(sums.high + at, sums.high_offset, high);
        low = high + low;
    }
    y += low;
}

LLMINT8_INLINE void make_canonical(Floats& y) {
    const Ints bits = reinterpret_cast<Ints>(y);
    y = reinterpret_cast<Floats>(y != y ? Ints{} + 0x7fc00000 : bits);
}

// As float_to_bfloat.
LLMINT8_INLINE void narrow_to_bfloat(const Floats& y, Halves& out) {
    const Ints bits = reinterpret_cast<Ints>(y);
    const Ints rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    out = __builtin_convertvector(rounded, Halves);
}

// One row of one tile of columns. Sums are of kColumns columns, whatever lies past the end. second: the sums
// with the second digits of the weight; null if there are none.
template <int kColumns>
inline void finish_row(const LinearCall& call, const ColumnScales<kColumns>& columns, int64_t row,
                       int64_t begin, int64_t end, const DigitSums& sums, const DigitSums* second) {
    static_assert(kColumns % kGroup == 0, "a tile is whole vectors");
    // Copies: what is written might otherwise change them, as far as the compiler knows.
    const DigitSums own = sums, more = second != nullptr ? *second : DigitSums{};
    const bool has_bias = columns.has_bias, whole = end - begin == kColumns;
    const int dtype = call.dtype;
    const float row_scale = call.rows->row(row).scale.scale;
    const int64_t bytes = dtype == LLMINT8_FLOAT32 ? 4 : 2;
    char* const out = static_cast<char*>(call.y) + (row * call.n + begin) * bytes;
    float wide[kColumns];
    for (int at = 0; at < kColumns; at += kGroup) {
        Floats y, scale, bias;
        widen_digits(own, at, y);
        if (more.low != nullptr) add_second_digits(more, at, y);
        std::memcpy(&scale, columns.scale + at, sizeof scale);
        y *= row_scale * scale;
        if (has_bias) {
            std::memcpy(&bias, columns.bias + at, sizeof bias);
            y += bias;
        }
        make_canonical(y);
        if (whole && dtype == LLMINT8_FLOAT32) {
            std::memcpy(out + at * 4, &y, sizeof y);
        } else if (whole && dtype == LLMINT8_BFLOAT16) {
            Halves halves;
            narrow_to_bfloat(y, halves);
            std::memcpy(out + at * 2, &halves, sizeof halves);
        } else {
            std::memcpy(wide + at, &y, sizeof y);
        }
    }
    if (!whole || dtype == LLMINT8_FLOAT16) narrow(wide, dtype, end - begin, out);
}

}  // namespace
}  // namespace llmint8
