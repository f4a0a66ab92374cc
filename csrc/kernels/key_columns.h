// Dot products of many rows with sixteen keys at once, one key in each lane of a register: the sixteen lanes
// of a sum (lanes.h) become sixteen registers, and its tree additions of registers, without a shuffle. Worth
// the keys' transposition where several rows share it, and a register holds as many. Same sums, same bits but
// for the sign of a zero. Internal linkage, as in float_bits.h and for the same reason.
#pragma once

#include "kernels/lanes.h"

namespace llmint8 {
namespace {

constexpr bool kSixteenInRegister = LLMINT8_VECTOR_BYTES == 64;  // else keys as they lie are as fast
constexpr int64_t kLeastSharingRows = 6;

#define LLMINT8_SIXTEEN(f) \
    f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), f(15)

// Lanes whose number has the bit kStep change places with those of the other vector that have not.
template <int kStep>
LLMINT8_INLINE void exchange(Vector16& a, Vector16& b) {
#define LLMINT8_FIRST(lane) (((lane) & kStep) != 0 ? 16 + (lane) - kStep : (lane))
#define LLMINT8_SECOND(lane) (((lane) & kStep) != 0 ? 16 + (lane) : (lane) + kStep)
    const Vector16 first = LLMINT8_SHUFFLE16(a, b, LLMINT8_SIXTEEN(LLMINT8_FIRST));
    b = LLMINT8_SHUFFLE16(a, b, LLMINT8_SIXTEEN(LLMINT8_SECOND));
    a = first;
#undef LLMINT8_FIRST
#undef LLMINT8_SECOND
}

template <int kStep>
LLMINT8_INLINE void exchange_all(Vector16 (&v)[16]) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
        if ((i & kStep) == 0) exchange<kStep>(v[i], v[i + kStep]);
    }
}

// Keys [count][d], d a multiple of 16, to [group of sixteen][d][16]; zeros past the last key.
inline void transpose_keys(const float* keys, int64_t count, int64_t d, float* to) {
    for (int64_t key = 0; key < count; key += 16, to += 16 * d) {
        for (int64_t i = 0; i < d; i += 16) {
            Vector16 v[16];
            if (key + 16 <= count) {
#pragma GCC unroll 16
                for (int64_t c = 0; c < 16; ++c) std::memcpy(&v[c], keys + (key + c) * d + i, sizeof v[c]);
            } else {
                for (int64_t c = 0; c < 16; ++c) {
                    v[c] = Vector16{};
                    if (key + c < count) std::memcpy(&v[c], keys + (key + c) * d + i, sizeof v[c]);
                }
            }
            exchange_all<1>(v);
            exchange_all<2>(v);
            exchange_all<4>(v);
            exchange_all<8>(v);
            std::memcpy(to + i * 16, v, sizeof v);
        }
    }
}

// Rows of x, of 16 * steps elements, times sixteen transposed keys.
struct SixteenKeys {
    const float* x;
    int64_t x_stride;
    const float* keys;
    int64_t steps;
    float* out;
    int64_t out_stride;

    // kSteps: known to the compiler, or 0.
    template <int kRows, int kSteps>
    LLMINT8_INLINE void run(int64_t row) const {
        const float* const rows = x + row * x_stride;
        const int64_t count = kSteps > 0 ? kSteps : steps, stride = x_stride;
        Vector16 pair[kRows][8];
#pragma GCC unroll 1  // or GCC would load all of the rows first, and run out of registers
        for (int j = 0; j < 8; ++j) {
            Vector16 low[kRows] = {}, high[kRows] = {}, left, right;
            const float* at = keys + j * 16;
#pragma GCC unroll 8
            for (int64_t i = 0; i < count; ++i, at += 256) {
                std::memcpy(&left, at, sizeof left);
                std::memcpy(&right, at + 128, sizeof right);
                for (int r = 0; r < kRows; ++r) {
                    const float* const own = rows + r * stride + i * 16 + j;
                    const Vector16 first = own[0] * left, second = own[8] * right;
                    low[r] = i == 0 ? first : low[r] + first;
                    high[r] = i == 0 ? second : high[r] + second;
                }
            }
            for (int r = 0; r < kRows; ++r) pair[r][j] = low[r] + high[r];
        }
        for (int r = 0; r < kRows; ++r) {
            const Vector16(&s)[8] = pair[r];
            const Vector16 sum = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
            std::memcpy(out + (row + r) * out_stride, &sum, sizeof sum);
        }
    }

    template <int kSteps>
    void run_all(int64_t rows) const {
        int64_t r = 0;
        for (; r + 3 <= rows; r += 3) run<3, kSteps>(r);
        for (; r < rows; ++r) run<1, kSteps>(r);
    }
};

// Rows of x times transposed keys: out[r * out_stride + key], also for the zeros past the last key.
inline void dot_transposed(const float* x, int64_t x_stride, int64_t rows, const float* keys, int64_t count,
                           int64_t d, float* out, int64_t out_stride) {
    for (int64_t key = 0; key < count; key += 16, keys += 16 * d) {
        const SixteenKeys products{x, x_stride, keys, d / 16, out + key, out_stride};
        if (d == 64) {
            products.run_all<4>(rows);
        } else if (d == 128) {
            products.run_all<8>(rows);
        } else {
            products.run_all<0>(rows);
        }
    }
}

}  // namespace
}  // namespace llmint8
