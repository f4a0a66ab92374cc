// Plain rows of digits to groups of each row in turn: [group][row][bytes], with room for some rows.
#pragma once

#include <cstring>
#include <type_traits>

#include "quantized_rows.h"
#include "shuffles.h"

namespace llmint8 {
namespace {

// Digits as they are, or widened.
template <class Digit>
inline void copy_digits(const int8_t* from, int64_t count, Digit* to) {
    if constexpr (std::is_same_v<Digit, int8_t>) {
        std::memcpy(to, from, static_cast<size_t>(count));
    } else {
        for (int64_t i = 0; i < count; ++i) to[i] = from[i];
    }
}

// Groups of kPadding bytes.
template <class Digit>
void interleave_groups(const int8_t* from, int64_t rows, int64_t room, int64_t padded_k, Digit* to) {
    constexpr int64_t kGroup = kPadding / static_cast<int64_t>(sizeof(Digit));
    for (int64_t i = 0; i < padded_k; i += kGroup) {
        for (int64_t r = 0; r < rows; ++r) {
            copy_digits(from + r * padded_k + i, kGroup, to + i * room + r * kGroup);
        }
    }
}

constexpr int64_t kTileWords = 4;  // and rows, which change places in registers

typedef uint32_t Words __attribute__((vector_size(16)));

// Four words of digits.
template <class Digit>
LLMINT8_INLINE void load_words(const int8_t* from, Words& words) {
    alignas(16) Digit digits[sizeof(Words) / sizeof(Digit)];
    copy_digits(from, sizeof digits / sizeof(Digit), digits);
    std::memcpy(&words, digits, sizeof words);
}

// 4 rows of 4 words to 4 columns, in place.
LLMINT8_INLINE void transpose(Words (&v)[kTileWords]) {
    const Words low01 = LLMINT8_SHUFFLE4(v[0], v[1], 0, 4, 1, 5);
    const Words low23 = LLMINT8_SHUFFLE4(v[2], v[3], 0, 4, 1, 5);
    const Words high01 = LLMINT8_SHUFFLE4(v[0], v[1], 2, 6, 3, 7);
    const Words high23 = LLMINT8_SHUFFLE4(v[2], v[3], 2, 6, 3, 7);
    v[0] = LLMINT8_SHUFFLE4(low01, low23, 0, 1, 4, 5);
    v[1] = LLMINT8_SHUFFLE4(low01, low23, 2, 3, 6, 7);
    v[2] = LLMINT8_SHUFFLE4(high01, high23, 0, 1, 4, 5);
    v[3] = LLMINT8_SHUFFLE4(high01, high23, 2, 3, 6, 7);
}

// Groups of a word. flip: what the bits of each are changed by.
template <class Digit>
void interleave_words(const int8_t* from, int64_t rows, int64_t room, int64_t padded_k, uint32_t flip,
                      Digit* to) {
    constexpr int64_t kWord = kWordBytes / static_cast<int64_t>(sizeof(Digit));
    for (int64_t i = 0; i < padded_k; i += kTileWords * kWord) {
        Digit* at = to + i * room;
        int64_t r = 0;
        for (; r + kTileWords <= rows; r += kTileWords, at += kTileWords * kWord) {
            Words words[kTileWords];
            for (int64_t j = 0; j < kTileWords; ++j)
                load_words<Digit>(from + (r + j) * padded_k + i, words[j]);
            transpose(words);
            for (int64_t w = 0; w < kTileWords; ++w) {
                words[w] ^= flip;
                std::memcpy(at + w * room * kWord, &words[w], sizeof words[w]);
            }
        }
        for (; r < rows; ++r, at += kWord) {
            Words words;
            load_words<Digit>(from + r * padded_k + i, words);
            words ^= flip;
            for (int64_t w = 0; w < kTileWords; ++w) {
                const uint32_t word = words[w];
                std::memcpy(at + w * room * kWord, &word, sizeof word);
            }
        }
    }
}

}  // namespace
}  // namespace llmint8
