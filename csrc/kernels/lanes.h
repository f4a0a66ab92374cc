// Float sums in the fixed order of docs/numerics.md, "Decoder": sixteen lanes, then a tree.
//
// The lanes are as many vector registers as the instruction set needs for them, as the compiler's own vector
// types, so the same source serves all. A file that includes this defines LLMINT8_VECTOR_BYTES: 16, 32 or 64.
// Internal linkage, as in float_bits.h and for the same reason.
#pragma once

#include <cstdint>
#include <cstring>

#include "quantized_rows.h"
#include "shuffles.h"

namespace llmint8 {
namespace {

constexpr int kLanes = 16;
constexpr int kVectorLanes = LLMINT8_VECTOR_BYTES / 4;
constexpr int kParts = kLanes / kVectorLanes;

typedef float Vector __attribute__((vector_size(LLMINT8_VECTOR_BYTES)));
typedef float Vector4 __attribute__((vector_size(16)));
typedef float Vector8 __attribute__((vector_size(32)));
typedef float Vector16 __attribute__((vector_size(64)));

// A vector at any address.
typedef float UnalignedVector __attribute__((vector_size(LLMINT8_VECTOR_BYTES), aligned(4), may_alias));

LLMINT8_INLINE const UnalignedVector& vector_at(const float* from, int part) {
    return *reinterpret_cast<const UnalignedVector*>(from + part * kVectorLanes);
}

LLMINT8_INLINE UnalignedVector& vector_at(float* from, int part) {
    return *reinterpret_cast<UnalignedVector*>(from + part * kVectorLanes);
}

// Never passed by value: the calling convention of vectors depends on the flags of the file. Every loop over
// parts is unrolled, so that they live in registers.
struct Lanes {
    Vector part[kParts];

    LLMINT8_INLINE void clear() {
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) part[p] = Vector{};
    }
    LLMINT8_INLINE void load(const float* from) {
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) part[p] = vector_at(from, p);
    }
    LLMINT8_INLINE void store(float* to) const {
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) vector_at(to, p) = part[p];
    }
    LLMINT8_INLINE void add(const float* x) {
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) part[p] += vector_at(x, p);
    }
    // The larger of each lane, ignoring NaN.
    LLMINT8_INLINE void raise(const float* x) {
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) {
            const Vector other = vector_at(x, p);
            part[p] = other > part[p] ? other : part[p];
        }
    }
};

// Neighbours of two vectors added: the lower half of the result is of a.
LLMINT8_INLINE void add_neighbours(const Vector4& a, const Vector4& b, Vector4& sums) {
    sums = LLMINT8_SHUFFLE4(a, b, 0, 2, 4, 6) + LLMINT8_SHUFFLE4(a, b, 1, 3, 5, 7);
}

// The same in each half of eight, as AVX has it.
LLMINT8_INLINE void add_neighbours(const Vector8& a, const Vector8& b, Vector8& sums) {
    sums =
        LLMINT8_SHUFFLE8(a, b, 0, 2, 8, 10, 4, 6, 12, 14) + LLMINT8_SHUFFLE8(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
}

// The sums of four times sixteen lanes.
LLMINT8_INLINE void sum_four(const Lanes (&lanes)[4], float* sums) {
#if LLMINT8_VECTOR_BYTES == 16
    Vector4 low[4], high[4];
    for (int i = 0; i < 4; ++i) {
        low[i] = lanes[i].part[0] + lanes[i].part[2];
        high[i] = lanes[i].part[1] + lanes[i].part[3];
    }
    Vector4 pair[4], half[2];
    add_neighbours(low[0], low[1], pair[0]);
    add_neighbours(low[2], low[3], pair[1]);
    add_neighbours(high[0], high[1], pair[2]);
    add_neighbours(high[2], high[3], pair[3]);
    add_neighbours(pair[0], pair[1], half[0]);
    add_neighbours(pair[2], pair[3], half[1]);
    const Vector4 all = half[0] + half[1];
#else
    Vector8 eight[4], pair[2], half;
    for (int i = 0; i < 4; ++i) {
        Vector8 of[2];
        std::memcpy(of, lanes[i].part, sizeof of);
        eight[i] = of[0] + of[1];
    }
    add_neighbours(eight[0], eight[1], pair[0]);
    add_neighbours(eight[2], eight[3], pair[1]);
    add_neighbours(pair[0], pair[1], half);
    Vector4 of[2];
    std::memcpy(of, &half, sizeof of);
    const Vector4 all = of[0] + of[1];
#endif
    std::memcpy(sums, &all, sizeof all);
}

inline float sum_lanes(const Lanes& of) {
    const Lanes lanes[4] = {of, {}, {}, {}};
    float sums[4];
    sum_four(lanes, sums);
    return sums[0];
}

// Count floats summed as lanes and tree; lane i starts with x[i].
inline float sum_floats(const float* x, int64_t count) {
    Lanes lanes = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) lanes.add(x + i);
    if (i < count) {
        float tail[kLanes] = {};
        std::memcpy(tail, x + i, static_cast<size_t>(count - i) * sizeof(float));
        lanes.add(tail);
    }
    return sum_lanes(lanes);
}

// kRows rows of x times four of w, all of count floats, a multiple of 16: sums[r][c]. One part of the lanes
// after the other, so that the accumulators and what they share stay in sixteen registers.
template <int kRows>
LLMINT8_INLINE void dot_rows(const float* x, int64_t x_stride, const float* const (&w)[4], int64_t count,
                             float (&sums)[kRows][4]) {
    Lanes lanes[kRows][4];
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) {
        Vector acc[kRows][4];
#pragma GCC unroll 3
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
            for (int c = 0; c < 4; ++c) acc[r][c] = Vector{};
        }
        for (int64_t i = 0; i < count; i += kLanes) {
            Vector left[kRows];
#pragma GCC unroll 3
            for (int r = 0; r < kRows; ++r) left[r] = vector_at(x + r * x_stride + i, p);
#pragma GCC unroll 4
            for (int c = 0; c < 4; ++c) {
                const Vector right = vector_at(w[c] + i, p);
#pragma GCC unroll 3
                for (int r = 0; r < kRows; ++r) acc[r][c] += left[r] * right;
            }
        }
#pragma GCC unroll 3
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
            for (int c = 0; c < 4; ++c) lanes[r][c].part[p] = acc[r][c];
        }
    }
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r) sum_four(lanes[r], sums[r]);
}

// Rows of x times rows of w, all of count floats, a multiple of 16: out[r * out_stride + c].
struct DotProducts {
    const float* x;
    int64_t x_stride;
    const float* w;
    int64_t w_stride, count;
    float* out;
    int64_t out_stride;

    void run(int64_t rows, int64_t columns) const {
        int64_t r = 0;
        for (; r + 3 <= rows; r += 3) run_rows<3>(r, columns);
        if (rows - r == 2) run_rows<2>(r, columns);
        if (rows - r == 1) run_rows<1>(r, columns);
    }

  private:
    template <int kRows>
    void run_rows(int64_t row, int64_t columns) const {
        float sums[kRows][4];
        for (int64_t c = 0; c < columns; c += 4) {
            const int64_t some = columns - c < 4 ? columns - c : 4;
            const float* four[4];
            for (int64_t i = 0; i < 4; ++i) four[i] = w + (i < some ? c + i : c) * w_stride;
            dot_rows<kRows>(x + row * x_stride, x_stride, four, count, sums);
            for (int r = 0; r < kRows; ++r) {
                float* to = out + (row + r) * out_stride + c;
                if (some == 4) {
                    std::memcpy(to, sums[r], sizeof sums[r]);
                } else {
                    for (int64_t i = 0; i < some; ++i) to[i] = sums[r][i];
                }
            }
        }
    }
};

}  // namespace
}  // namespace llmint8
