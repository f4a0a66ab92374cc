// Elements of two vectors, chosen by constants: the compiler's own, whichever name it has for it.
#pragma once

#include <cstdint>

#if defined(__clang__) || __GNUC__ >= 12
#define LLMINT8_SHUFFLE4(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#define LLMINT8_SHUFFLE8(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define LLMINT8_SHUFFLE16(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t Index4 __attribute__((vector_size(16)));
typedef int32_t Index8 __attribute__((vector_size(32)));
typedef int32_t Index16 __attribute__((vector_size(64)));
#define LLMINT8_SHUFFLE4(a, b, i, j, k, l) __builtin_shuffle(a, b, (Index4{i, j, k, l}))
#define LLMINT8_SHUFFLE8(a, b, ...) __builtin_shuffle(a, b, (Index8{__VA_ARGS__}))
#define LLMINT8_SHUFFLE16(a, b, ...) __builtin_shuffle(a, b, (Index16{__VA_ARGS__}))
#endif
