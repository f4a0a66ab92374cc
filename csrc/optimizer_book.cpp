#include "optimizer_book.h"

#include <cmath>
#include <cstring>

namespace llmint8 {

namespace {

uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// One decade of magnitudes: the means of neighbouring boundaries of [0.1, 1] in `items` equal parts, each
// boundary rounded to float32 once, times a power of ten.
int add_decade(int exponent, int items, float* out) {
    const float step = (1.0f - 0.1f) / static_cast<float>(items);
    const float scale = static_cast<float>(std::pow(10.0, exponent));
    const auto boundary = [&](int i) {
        return static_cast<float>(i < (items + 1) / 2
                                      ? static_cast<double>(0.1f) + static_cast<double>(step) * i
                                      : 1.0 - static_cast<double>(step) * (items - i));
    };
    for (int i = 0; i < items; ++i) out[i] = scale * ((boundary(i) + boundary(i + 1)) / 2.0f);
    return items;
}

CodeBook build(bool is_signed) {
    float magnitudes[257] = {0.0f};
    int count = 1;
    for (int i = 0; i < 7; ++i) count += add_decade(i - 6, is_signed ? 1 << i : 2 << i, magnitudes + count);
    magnitudes[count++] = 1.0f;

    CodeBook book = {};
    book.zero = is_signed ? count - 2 : 0;
    book.most_negative = book.zero;
    for (int k = 0; k < count; ++k) {
        if (k <= book.most_negative) book.values[book.zero - k] = -magnitudes[k];
        book.values[book.zero + k] = magnitudes[k];
    }
    int k = 0;
    for (int32_t cell = 0; cell < kCells; ++cell) {
        const uint32_t first = cell == 0 ? 0 : static_cast<uint32_t>(cell + kBelowFirstCell) << 16;
        const uint32_t next = static_cast<uint32_t>(cell + kBelowFirstCell + 1) << 16;
        uint32_t& entry = book.cells[cell] = static_cast<uint32_t>(k) << 16;
        if (k + 1 >= count) continue;
        const uint32_t midpoint = bits_of((magnitudes[k] + magnitudes[k + 1]) / 2.0f);
        if (midpoint < first || midpoint >= next) continue;
        entry += 0xffffu - (midpoint & 0xffffu);
        ++k;
    }
    return book;
}

}  // namespace

const CodeBook& code_book(bool is_signed) {
    static const CodeBook with_sign = build(true), without = build(false);
    return is_signed ? with_sign : without;
}

}  // namespace llmint8
