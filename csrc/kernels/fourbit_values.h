// 4-bit codes to floats: docs/numerics.md, "4 bits". The sixteen values lie in registers where there is an
// instruction that looks them up. Internal linkage, as in float_bits.h and for the same reason.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "fourbit.h"
#include "kernels/float_bits.h"
#include "kernels/lanes.h"

namespace llmint8 {
namespace {

constexpr int64_t kNestedBlock = 256;

inline float fourbit_scale(const FourbitWeight& weight, int64_t b) {
    if (weight.absmax_codes == nullptr) return weight.absmax[b];
    return weight.nested_book[weight.absmax_codes[b]] * weight.absmax[b / kNestedBlock] + weight.offset;
}

inline float fourbit_value(const FourbitWeight& weight, int64_t i) {
    return weight.book[weight.codes[i / 2] >> (i % 2 == 0 ? 4 : 0) & 15];
}

#if LLMINT8_VECTOR_BYTES >= 32 && !defined(__clang__)  // which has no shuffle by variables
#define LLMINT8_FOURBIT_VECTORS
typedef int32_t Codes __attribute__((vector_size(LLMINT8_VECTOR_BYTES)));

// The code book as registers, and as many elements at a time as a vector has lanes.
struct FourbitTable {
    explicit FourbitTable(const float* book) {
        std::memcpy(&low, book, sizeof low);
        std::memcpy(&high, book + 16 - kVectorLanes, sizeof high);
        for (int i = 0; i < kVectorLanes; ++i) shift[i] = i % 8 / 2 * 8 + (i % 2 == 0 ? 4 : 0);
    }

    LLMINT8_INLINE void values(const uint8_t* from, Vector& out) const {
        Codes codes;
#if LLMINT8_VECTOR_BYTES == 64
        uint32_t bytes[2];
        std::memcpy(bytes, from, sizeof bytes);
        for (int i = 0; i < kVectorLanes; ++i) codes[i] = static_cast<int32_t>(bytes[i / 8]);
        codes = codes >> shift & 15;
        out = __builtin_shuffle(low, codes);
#else
        int32_t bytes;
        std::memcpy(&bytes, from, sizeof bytes);
        codes = (Codes{} + bytes) >> shift;
        // The sign bits select: those of the lanes whose code is 8 or more.
        out = _mm256_blendv_ps(__builtin_shuffle(low, codes), __builtin_shuffle(high, codes),
                               reinterpret_cast<Vector>(codes << 28));
#endif
    }

    Vector low, high;
    Codes shift;
};
#else
struct FourbitTable {
    explicit FourbitTable(const float*) {}
};
#endif

// Elements [first, first + count) of one block, or part of it.
LLMINT8_INLINE void fourbit_block(const FourbitWeight& weight, [[maybe_unused]] const FourbitTable& table,
                                  float scale, int64_t first, int64_t count, float* to) {
    int64_t i = 0;
#if defined(LLMINT8_FOURBIT_VECTORS)
    if (first % 2 == 0) {
        for (; i + kVectorLanes <= count; i += kVectorLanes) {
            Vector values;
            table.values(weight.codes + (first + i) / 2, values);
            vector_at(to + i, 0) = values * scale;
        }
    }
#endif
    for (; i < count; ++i) to[i] = fourbit_value(weight, first + i) * scale;
}

// Elements [first, first + count) as floats.
void fourbit_values(const FourbitWeight& weight, int64_t first, int64_t count, float* to) {
    const FourbitTable table(weight.book);
    for (int64_t i = 0; i < count;) {
        const int64_t b = (first + i) / weight.block, end = (b + 1) * weight.block - first;
        const int64_t stop = end < count ? end : count;
        fourbit_block(weight, table, fourbit_scale(weight, b), first + i, stop - i, to + i);
        i = stop;
    }
}

#if defined(LLMINT8_FOURBIT_VECTORS)
// One row of x times four rows of the weight, which start with blocks: no value is stored. As dot_rows.
inline void fourbit_dot(const FourbitWeight& weight, const float* x, const int64_t (&first)[4], int64_t k,
                        float (&sums)[4]) {
    const FourbitTable table(weight.book);
    Lanes acc[4], left;
    for (Lanes& lanes : acc) lanes.clear();
    for (int64_t i = 0; i < k; i += weight.block) {
        float scale[4];
        for (int c = 0; c < 4; ++c) scale[c] = fourbit_scale(weight, (first[c] + i) / weight.block);
        for (int64_t j = i; j < i + weight.block; j += kLanes) {
            left.load(x + j);
#pragma GCC unroll 4
            for (int c = 0; c < 4; ++c) {
                const uint8_t* codes = weight.codes + (first[c] + j) / 2;
#pragma GCC unroll 2
                for (int p = 0; p < kParts; ++p) {
                    Vector values;
                    table.values(codes + p * kVectorLanes / 2, values);
                    acc[c].part[p] += left.part[p] * (values * scale[c]);
                }
            }
        }
    }
    sum_four(acc, sums);
}
#endif

// The same as dtype. Not more than one block at a time is wide.
void fourbit_elements(const FourbitWeight& weight, int64_t first, int64_t count, int dtype, void* to) {
    constexpr int64_t kPart = 64;
    float wide[kPart];
    const int64_t bytes = dtype == LLMINT8_FLOAT32 ? 4 : 2;
    for (int64_t i = 0; i < count; i += kPart) {
        const int64_t some = count - i < kPart ? count - i : kPart;
        fourbit_values(weight, first + i, some, wide);
        narrow(wide, dtype, some, static_cast<char*>(to) + i * bytes);
    }
}

}  // namespace
}  // namespace llmint8
