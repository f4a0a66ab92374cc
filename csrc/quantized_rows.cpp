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

QuantizedRows::QuantizedRows(int64_t m, int64_t k, int64_t rows_per_block)
    : m_(m),
      k_(k),
      padded_k_(round_up(k, kRowUnit)),
      blocks_((m + rows_per_block - 1) / rows_per_block),
      unit_(rows_per_block == 1 ? kRowUnit : kGroup) {
    const int64_t digits = round_up(m * padded_k_, 64);
    const int64_t units = round_up(m * (padded_k_ / unit_) * static_cast<int64_t>(sizeof(uint32_t)), 64);
    const int64_t counts = round_up(m * static_cast<int64_t>(sizeof(uint32_t)), 64);
    memory_ = allocate(2 * digits + units + counts + m * static_cast<int64_t>(sizeof(RowScale)));
    uint8_t* p = memory_.get();
    lo_ = reinterpret_cast<int8_t*>(p);
    hi_ = reinterpret_cast<int8_t*>(p + digits);
    units_ = reinterpret_cast<uint32_t*>(p + 2 * digits);
    counts_ = reinterpret_cast<uint32_t*>(p + 2 * digits + units);
    scales_ = reinterpret_cast<RowScale*>(p + 2 * digits + units + counts);
}

int64_t QuantizedRows::block_of(int64_t row) const {
    const int64_t small = m_ / blocks_, large_blocks = m_ % blocks_;
    const int64_t in_large = large_blocks * (small + 1);
    return row < in_large ? row / (small + 1) : large_blocks + (row - in_large) / small;
}

void QuantizedRows::store(int64_t row, const int8_t* lo, const int8_t* hi, const RowScale& scale) {
    const int64_t b = block_of(row), rows = block_rows(b), r = row - block_begin(b);
    scales_[row] = scale;
    uint32_t count = 0;
    uint32_t* units = high_units(row);
    if (unit_ == kRowUnit) {
        std::memcpy(this->lo(b), lo, static_cast<size_t>(padded_k_));
        for (int64_t i = 0; scale.has_high && i < padded_k_; i += kRowUnit) {
            if (!any_nonzero(hi + i, kRowUnit)) continue;
            std::memcpy(this->hi(b) + i, hi + i, kRowUnit);
            units[count++] = static_cast<uint32_t>(i / kRowUnit);
        }
    } else {
        int8_t* to = this->lo(b) + r * kGroup;
        for (int64_t i = 0; i < padded_k_; i += kGroup) std::memcpy(to + i * rows, lo + i, kGroup);
        to = this->hi(b) + r * kGroup;
        for (int64_t i = 0; scale.has_high && i < padded_k_; i += kRowUnit) {
            if (!any_nonzero(hi + i, kRowUnit)) continue;
            for (int64_t j = i; j < i + kRowUnit; j += kGroup) {
                uint32_t four;
                std::memcpy(&four, hi + j, kGroup);
                if (four == 0) continue;
                std::memcpy(to + j * rows, &four, kGroup);
                units[count++] = static_cast<uint32_t>(j / kGroup);
            }
        }
    }
    counts_[row] = count;
}

}  // namespace llmint8
