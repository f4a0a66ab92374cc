// One pass over the blocks of a tensor: read, de-quantise, update, quantise again, write. A block's floats
// live on the stack, so memory sees weights, gradients and codes once.
//
// Internal linkage throughout, see float_bits.h: this is compiled once per instruction set.
#pragma once

#include <cstring>

#include "kernels/optimizer_rules.h"
#include "optimizer_book.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace llmint8 {
namespace {

constexpr int64_t kBlocksAhead = 2;  // fetched from memory; one is late, four measure no faster

// out[i] = table[index[i]]: the one thing here that compilers do not vectorise well.
inline void look_up(const void* table, const int32_t* index, void* out) {
    const int32_t* from = static_cast<const int32_t*>(table);
    int32_t* to = static_cast<int32_t*>(out);
#if defined(__AVX512F__)
    for (int64_t i = 0; i < kOptimizerBlock; i += 16) {
        const __m512i at = _mm512_loadu_si512(index + i);
        _mm512_storeu_si512(to + i, _mm512_i32gather_epi32(at, from, 4));
    }
#elif defined(__AVX2__)
    for (int64_t i = 0; i < kOptimizerBlock; i += 8) {
        // Eight loads: a gather takes nearly twice their time on Zen 3.
        const int32_t* at = index + i;
        const __m256i found = _mm256_setr_epi32(from[at[0]], from[at[1]], from[at[2]], from[at[3]],
                                                from[at[4]], from[at[5]], from[at[6]], from[at[7]]);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), found);
    }
#else
    for (int64_t i = 0; i < kOptimizerBlock; ++i) std::memcpy(to + i, from + index[i], 4);
#endif
}

LLMINT8_NOINLINE void dequantize(const uint8_t* codes, float absmax, const CodeBook& book, float* out) {
    alignas(64) int32_t index[kOptimizerBlock];
    for (int64_t i = 0; i < kOptimizerBlock; ++i) index[i] = codes[i];
    look_up(book.values, index, out);
    for (int64_t i = 0; i < kOptimizerBlock; ++i) out[i] *= absmax;
}

// Returns the absmax: 0 for a block whose values are all below the smallest normal float, NaN for one that is
// not finite.
LLMINT8_NOINLINE float quantize(const float* values, const CodeBook& book, uint8_t* codes) {
    int32_t largest = 0;
    for (int64_t i = 0; i < kOptimizerBlock; ++i) {
        const int32_t bits = magnitude_bits(values[i]);
        largest = bits > largest ? bits : largest;
    }
    if (largest < 0x00800000 || largest >= 0x7f800000) {
        std::memset(codes, book.zero, kOptimizerBlock);
        return from_bits(largest < 0x00800000 ? 0u : 0x7fc00000u);
    }
    const float absmax = from_bits(static_cast<uint32_t>(largest)), inverse = 1.0f / absmax;
    alignas(64) int32_t bits[kOptimizerBlock], index[kOptimizerBlock], entry[kOptimizerBlock];
    for (int64_t i = 0; i < kOptimizerBlock; ++i) {
        bits[i] = magnitude_bits(values[i] * inverse);
        const int32_t cell = bits[i] >> 16;
        index[i] = (cell > kBelowFirstCell ? cell : kBelowFirstCell) - kBelowFirstCell;
    }
    look_up(book.cells, index, entry);
    const int32_t zero = book.zero, most_negative = book.most_negative;
    for (int64_t i = 0; i < kOptimizerBlock; ++i) {
        const int32_t k = (entry[i] + (bits[i] & 0xffff)) >> 16;
        const int32_t negative = k < most_negative ? k : most_negative;
        codes[i] = static_cast<uint8_t>(values[i] < 0.0f ? zero - negative : zero + k);
    }
    return absmax;
}

// The sum of squares, halving the block again and again: an order that torch can repeat.
inline double sum_of_squares(const float* values) {
    double sums[kOptimizerBlock];
    for (int64_t i = 0; i < kOptimizerBlock; ++i) sums[i] = static_cast<double>(values[i]) * values[i];
    for (int64_t half = kOptimizerBlock / 2; half > 0; half /= 2) {
        for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
    }
    return sums[0];
}

inline int64_t element_bytes(int dtype) {
    return dtype == LLMINT8_FLOAT32 ? 4 : 2;
}

template <typename Rule>
void finish(Tile& t, const OptimizerCall& call, int64_t block, int64_t count) {
    const float* c = call.constants;
    if (c[kUpdateDecay] != 0.0f) {
        for (int64_t i = 0; i < kOptimizerBlock; ++i) t.u[i] = t.u[i] + t.p[i] * c[kUpdateDecay];
    }
    // Behind the end a rule may have divided zero by zero.
    for (int64_t i = count; i < kOptimizerBlock; ++i) t.u[i] = t.s[0][i] = t.s[1][i] = t.s[2][i] = 0.0f;
    if (call.norms) {
        call.norms[2 * block] = sum_of_squares(t.p);
        call.norms[2 * block + 1] = sum_of_squares(t.u);
        return;
    }
    const float decay = c[kDecay], step = c[kStep];
    for (int64_t i = 0; i < kOptimizerBlock; ++i) {
        const float p = t.p[i] * decay - t.u[i] * step;
        t.p[i] = p == p ? p : from_bits(0x7fc00000u);
    }
    const int64_t at = block * kOptimizerBlock;
    narrow(t.p, call.dtype, count, static_cast<char*>(call.p) + at * element_bytes(call.dtype));
    for (int s = 0; s < Rule::kStates; ++s) {
        if (!call.absmax[s]) {
            std::memcpy(static_cast<float*>(call.states[s]) + at, t.s[s], static_cast<size_t>(count) * 4);
            continue;
        }
        uint8_t* codes = static_cast<uint8_t*>(call.states[s]) + at;
        alignas(64) uint8_t whole[kOptimizerBlock];
        const bool fits = count == kOptimizerBlock;
        call.absmax[s][block] = quantize(t.s[s], code_book(Rule::kSigned[s]), fits ? codes : whole);
        if (!fits) std::memcpy(codes, whole, static_cast<size_t>(count));
    }
}

// Asks for a whole block of a tensor before its turn: while a block is computed nothing reads memory, and a
// hardware prefetcher does not look that far ahead. Always inlined: GCC 12 deletes calls of a function that
// only prefetches.
LLMINT8_INLINE void fetch(const void* tensor, int64_t block, int64_t bytes) {
    const char* from = static_cast<const char*>(tensor) + block * kOptimizerBlock * bytes;
    for (int64_t i = 0; i < kOptimizerBlock * bytes; i += 64) __builtin_prefetch(from + i);
}

LLMINT8_INLINE void fetch_block(const OptimizerCall& call, int states, int64_t block) {
    fetch(call.p, block, element_bytes(call.dtype));
    fetch(call.g, block, element_bytes(call.grad_dtype));
    for (int s = 0; s < states; ++s) fetch(call.states[s], block, call.absmax[s] ? 1 : 4);
}

template <typename Rule>
void run_blocks(const OptimizerCall& call, int64_t begin, int64_t end) {
    Tile t;
    for (int64_t block = begin; block < end; ++block) {
        const int64_t at = block * kOptimizerBlock;
        const int64_t count = call.count - at < kOptimizerBlock ? call.count - at : kOptimizerBlock;
        const bool fits = count == kOptimizerBlock;
        if (!fits) std::memset(&t, 0, sizeof t);
        if (block + kBlocksAhead < end) fetch_block(call, Rule::kStates, block + kBlocksAhead);
        widen(static_cast<const char*>(call.p) + at * element_bytes(call.dtype), call.dtype, count, t.p);
        widen(static_cast<const char*>(call.g) + at * element_bytes(call.grad_dtype), call.grad_dtype, count,
              t.g);
        for (int s = 0; s < Rule::kStates; ++s) {
            if (!call.absmax[s]) {
                std::memcpy(t.s[s], static_cast<const float*>(call.states[s]) + at,
                            static_cast<size_t>(count) * 4);
                continue;
            }
            const CodeBook& book = code_book(Rule::kSigned[s]);
            const uint8_t* codes = static_cast<const uint8_t*>(call.states[s]) + at;
            uint8_t whole[kOptimizerBlock];
            if (!fits) {
                std::memset(whole, book.zero, sizeof whole);
                std::memcpy(whole, codes, static_cast<size_t>(count));
            }
            dequantize(fits ? codes : whole, call.absmax[s][block], book, t.s[s]);
        }
        const float coupled = call.constants[kCoupledDecay];
        if (coupled != 0.0f) {
            for (int64_t i = 0; i < kOptimizerBlock; ++i) t.g[i] = t.g[i] + t.p[i] * coupled;
        }
        Rule::update(t, call.constants + kFirst);
        finish<Rule>(t, call, block, count);
    }
}

inline void run(const OptimizerCall& call, int64_t begin, int64_t end) {
    switch (call.rule) {
        case LLMINT8_RULE_ADAM:
            return run_blocks<Adam>(call, begin, end);
        case LLMINT8_RULE_ADEMAMIX:
            return run_blocks<Ademamix>(call, begin, end);
        case LLMINT8_RULE_LION:
            return run_blocks<Lion>(call, begin, end);
        case LLMINT8_RULE_MOMENTUM:
            return run_blocks<Momentum>(call, begin, end);
        case LLMINT8_RULE_RMSPROP:
            return run_blocks<Rmsprop>(call, begin, end);
        case LLMINT8_RULE_RMSPROP_MOMENTUM:
            return run_blocks<RmspropMomentum>(call, begin, end);
        default:
            return run_blocks<Adagrad>(call, begin, end);
    }
}

}  // namespace
}  // namespace llmint8
