#include "quantized_rows.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace llmint8 {

namespace {

constexpr int64_t round_up(int64_t value, int64_t step) {
    return (value + step - 1) / step * step;
}

bool any_nonzero(const int8_t* digits, int64_t count) {
    for (int64_t i = 0; i < count; i += 8) {
        uint64_t eight;
        std::memcpy(&eight, digits + i, 8);
        if (eight != 0) return true;
    }
    return false;
}

}  // namespace

void FreeAligned::operator()(void* p) const {
    std::free(p);
}

Buffer allocate(int64_t bytes) {
    void* p = std::aligned_alloc(64, static_cast<size_t>(round_up(bytes > 0 ? bytes : 1, 64)));
    if (p == nullptr) throw std::bad_alloc();
    return Buffer(static_cast<uint8_t*>(p));
}

QuantizedRows::QuantizedRows(int64_t m, int64_t k, int64_t rows_per_block, int64_t digit_bytes)
    : m_(m),
      k_(k),
      padded_k_(round_up(k, kRowUnit)),
      digit_bytes_(digit_bytes),
      blocks_((m + rows_per_block - 1) / rows_per_block),
      unit_(rows_per_block == 1 ? kRowUnit : kWordBytes / digit_bytes) {
    const int64_t digits = round_up(m * padded_k_ * digit_bytes, 64);
    const int64_t units = round_up(m * (padded_k_ / unit_) * static_cast<int64_t>(sizeof(uint32_t)), 64);
    const int64_t counts = round_up(m * static_cast<int64_t>(sizeof(uint32_t)), 64);
    memory_ = allocate(2 * digits + units + counts + m * static_cast<int64_t>(sizeof(RowScale)));
    uint8_t* p = memory_.get();
    lo_ = p;
    hi_ = p + digits;
    units_ = reinterpret_cast<uint32_t*>(p + 2 * digits);
    counts_ = reinterpret_cast<uint32_t*>(p + 2 * digits + units);
    scales_ = reinterpret_cast<RowScale*>(p + 2 * digits + units + counts);
}

int64_t QuantizedRows::block_of(int64_t row) const {
    const int64_t small = m_ / blocks_, large_blocks = m_ % blocks_;
    const int64_t in_large = large_blocks * (small + 1);
    return row < in_large ? row / (small + 1) : large_blocks + (row - in_large) / small;
}

// Digits as they are, or widened.
template <class Digit>
inline void copy_digits(const int8_t* from, int64_t count, Digit* to) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

template <class Digit>
uint32_t QuantizedRows::store_digits(int64_t row, const int8_t* lo, const int8_t* hi, bool has_high) {
    constexpr int64_t kWord = kWordBytes / static_cast<int64_t>(sizeof(Digit));
    const int64_t b = block_of(row), rows = block_rows(b), r = row - block_begin(b);
    Digit *to_lo = this->lo<Digit>(b), *to_hi = this->hi<Digit>(b);
    uint32_t count = 0, *units = high_units(row);
    if (unit_ == kRowUnit) {
        copy_digits(lo, padded_k_, to_lo);
    } else {
        to_lo += r * kWord, to_hi += r * kWord;
        for (int64_t i = 0; i < padded_k_; i += kWord) copy_digits(lo + i, kWord, to_lo + i * rows);
    }
    for (int64_t i = 0; has_high && i < padded_k_; i += kRowUnit) {
        if (!any_nonzero(hi + i, kRowUnit)) continue;
        if (unit_ == kRowUnit) {
            copy_digits(hi + i, kRowUnit, to_hi + i);
            units[count++] = static_cast<uint32_t>(i / kRowUnit);
            continue;
        }
        for (int64_t j = i; j < i + kRowUnit; j += kWord) {
            bool nonzero = false;
            for (int64_t d = j; d < j + kWord; ++d) nonzero = nonzero || hi[d] != 0;
            if (!nonzero) continue;
            copy_digits(hi + j, kWord, to_hi + j * rows);
            units[count++] = static_cast<uint32_t>(j / kWord);
        }
    }
    return count;
}

void QuantizedRows::store(int64_t row, const int8_t* lo, const int8_t* hi, const RowScale& scale) {
    scales_[row] = scale;
    counts_[row] = digit_bytes_ == 1 ? store_digits<int8_t>(row, lo, hi, scale.has_high)
                                     : store_digits<int16_t>(row, lo, hi, scale.has_high);
}

}  // namespace llmint8
