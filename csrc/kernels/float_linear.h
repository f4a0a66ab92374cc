// A linear layer with a float or a 4-bit weight: sums in the fixed order of docs/numerics.md, "Decoder".
// A tile of weight rows is widened once and meets all rows of x from the cache.
// Internal linkage, as in float_bits.h and for the same reason.
#pragma once

#include "kernels/decoder_rows.h"
#include "kernels/fourbit_values.h"

namespace llmint8 {
namespace {

constexpr int64_t kFloatColumns = 4;

int64_t float_linear_bytes(int64_t m, int64_t padded_k) {
    return kFloatColumns * (m + padded_k) * static_cast<int64_t>(sizeof(float));
}

template <class Element>
void finish_float_tile(const FloatLinearCall& call, int64_t begin, int64_t columns, const float* sums) {
    using Storage = typename Element::Storage;
    float bias[kFloatColumns];
    if (call.bias != nullptr) {
        const int64_t bytes = call.bias_dtype == LLMINT8_FLOAT32 ? 4 : 2;
        widen(static_cast<const char*>(call.bias) + begin * bytes, call.bias_dtype, columns, bias);
    }
    for (int64_t row = 0; row < call.m; ++row) {
        Storage* to = static_cast<Storage*>(call.y) + row * call.n + begin;
        for (int64_t c = 0; c < columns; ++c) {
            const float sum = sums[row * kFloatColumns + c];
            to[c] = Element::narrow(call.bias != nullptr ? sum + bias[c] : sum);
        }
    }
}

void float_linear_columns(const FloatLinearCall& call, int64_t begin, int64_t end, void* scratch) {
    float *sums = static_cast<float*>(scratch), *tile = sums + kFloatColumns * call.m;
    const int64_t columns = end - begin;
    const float* rows = tile;
#if defined(LLMINT8_FOURBIT_VECTORS)
    if (call.fourbit != nullptr && call.m == 1 && call.k % call.fourbit->block == 0 &&
        call.fourbit->block % kFloatLanes == 0) {
        int64_t first[kFloatColumns];
        for (int64_t c = 0; c < kFloatColumns; ++c) first[c] = (c < columns ? begin + c : begin) * call.k;
        float four[kFloatColumns];
        fourbit_dot(*call.fourbit, call.x, first, call.k, four);
        with_element(call.dtype,
                     [&](auto element) { finish_float_tile<decltype(element)>(call, begin, columns, four); });
        return;
    }
#endif
    if (call.fourbit != nullptr) {
        for (int64_t c = 0; c < columns; ++c) {
            float* row = tile + c * call.padded_k;
            fourbit_values(*call.fourbit, (begin + c) * call.k, call.k, row);
            for (int64_t i = call.k; i < call.padded_k; ++i) row[i] = 0.0f;
        }
    } else {
        const int64_t bytes = call.dtype == LLMINT8_FLOAT32 ? 4 : 2;
        const char* weight = static_cast<const char*>(call.weight) + begin * call.k * bytes;
        if (call.dtype == LLMINT8_FLOAT32 && call.k == call.padded_k) {
            rows = reinterpret_cast<const float*>(weight);
        } else {
            widen_rows(call.dtype, weight, columns, call.k, call.padded_k, tile);
        }
    }
    const DotProducts products{call.x,        call.padded_k, rows,         call.padded_k,
                               call.padded_k, sums,          kFloatColumns};
    products.run(call.m, columns);
    with_element(call.dtype,
                 [&](auto element) { finish_float_tile<decltype(element)>(call, begin, columns, sums); });
}

}  // namespace
}  // namespace llmint8
