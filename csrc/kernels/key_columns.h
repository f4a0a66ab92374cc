// Keys transposed: sixteen of them in the lanes of a register, so that the products of attention, which are
// added one after the other, are added for sixteen keys at once. Internal linkage, as in float_bits.h and for
// the same reason.
#pragma once

#include "kernels/lanes.h"

namespace llmint8 {
namespace {

#if LLMINT8_VECTOR_BYTES == 64
#define LLMINT8_EVERY_LANE(f) \
    f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), f(15)
#define LLMINT8_SHUFFLE(a, b, ...) LLMINT8_SHUFFLE16(a, b, __VA_ARGS__)
#elif LLMINT8_VECTOR_BYTES == 32
#define LLMINT8_EVERY_LANE(f) f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)
#define LLMINT8_SHUFFLE(a, b, ...) LLMINT8_SHUFFLE8(a, b, __VA_ARGS__)
#else
#define LLMINT8_EVERY_LANE(f) f(0), f(1), f(2), f(3)
#define LLMINT8_SHUFFLE(a, b, ...) LLMINT8_SHUFFLE4(a, b, __VA_ARGS__)
#endif

// Lanes whose number has the bit kStep change places with those of the other vector that have not.
template <int kStep>
LLMINT8_INLINE void exchange(Vector& a, Vector& b) {
#define LLMINT8_FIRST(lane) (((lane) & kStep) != 0 ? kVectorLanes + (lane) - kStep : (lane))
#define LLMINT8_SECOND(lane) (((lane) & kStep) != 0 ? kVectorLanes + (lane) : (lane) + kStep)
    const Vector first = LLMINT8_SHUFFLE(a, b, LLMINT8_EVERY_LANE(LLMINT8_FIRST));
    b = LLMINT8_SHUFFLE(a, b, LLMINT8_EVERY_LANE(LLMINT8_SECOND));
    a = first;
#undef LLMINT8_FIRST
#undef LLMINT8_SECOND
}

template <int kStep>
LLMINT8_INLINE void exchange_all(Vector (&v)[kVectorLanes]) {
    if constexpr (kStep < kVectorLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kVectorLanes; ++i) {
            if ((i & kStep) == 0) exchange<kStep>(v[i], v[i + kStep]);
        }
        exchange_all<2 * kStep>(v);
    }
}

// Rows of 32-bit units, `stride` bytes apart, to [unit][16]: zeros past the last of up to sixteen rows. Units
// are a multiple of 16.
inline void transpose_sixteen(const void* rows, int64_t stride, int64_t count, int64_t units, float* to) {
    const char* const from = static_cast<const char*>(rows);
    for (int64_t row = 0; row < kLanes; row += kVectorLanes) {
        for (int64_t u = 0; u < units; u += kVectorLanes) {
            Vector v[kVectorLanes];
            const char* const at = from + row * stride + u * 4;
            if (row + kVectorLanes <= count) {
#pragma GCC unroll 16
                for (int64_t c = 0; c < kVectorLanes; ++c) std::memcpy(&v[c], at + c * stride, sizeof v[c]);
            } else {
                for (int64_t c = 0; c < kVectorLanes; ++c) {
                    v[c] = Vector{};
                    if (row + c < count) std::memcpy(&v[c], at + c * stride, sizeof v[c]);
                }
            }
            exchange_all<1>(v);
#pragma GCC unroll 16
            for (int64_t c = 0; c < kVectorLanes; ++c) {
                std::memcpy(to + (u + c) * kLanes + row, &v[c], sizeof v[c]);
            }
        }
    }
}

// Two bfloat16 in a unit to one float each, [2 * unit][16]; specks are zeros (docs/numerics.md, "Decoder").
inline void widen_pairs(const float* pairs, int64_t units, float* to) {
    for (int64_t u = 0; u < units; ++u, pairs += kLanes, to += 2 * kLanes) {
        for (int64_t c = 0; c < kLanes; ++c) {
            const uint32_t pair = to_bits(pairs[c]);
            to[c] = without_speck(from_bits(pair << 16));
            to[kLanes + c] = without_speck(from_bits(pair & 0xffff0000u));
        }
    }
}

}  // namespace
}  // namespace llmint8
