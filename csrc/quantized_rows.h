// Quantised activations as a type: where the digits of each row lie, and which of them are outliers.
//
// Digits are int8 or, for kernels that multiply 16-bit integers, int16. Rows are grouped in blocks of nearly
// equal size; inside a block, words of four bytes (4 or 2 consecutive digits) of each row alternate
// ([word][row][4]), so that a kernel which handles a block at a time reads one stream. A block of one row is
// simply that row. High digits have the same layout, but only the units (runs of digits) that hold a non-zero
// one are written and listed: outliers cost what they are, not what K is.
#pragma once

#include <cstdint>
#include <memory>

// Files of different instruction-set flags include this: a member that is not inlined would be kept once by
// the linker, perhaps from the file whose instructions this CPU lacks.
#define LLMINT8_INLINE inline __attribute__((always_inline))

namespace llmint8 {

constexpr int64_t kWordBytes = 4;  // the digits that a dot-product instruction multiplies and sums
constexpr int64_t kRowUnit = 64;   // digits in a high unit of a plain row: one cache line
constexpr int64_t kMaxK = 131072;  // 128 * 127 * K must fit int32

struct RowScale {
    float scale;     // 0: the row is zero; NaN: the row is not finite
    int32_t lo_sum;  // sums of the digits, by which unsigned-by-signed kernels undo their offset
    int32_t hi_sum;
    bool has_high;
};

struct FreeAligned {
    void operator()(void* p) const;
};
using Buffer = std::unique_ptr<uint8_t, FreeAligned>;

// 64-byte aligned, not initialised. Throws std::bad_alloc.
Buffer allocate(int64_t bytes);

class QuantizedRows {
  public:
    QuantizedRows(int64_t m, int64_t k, int64_t rows_per_block, int64_t digit_bytes);

    LLMINT8_INLINE int64_t m() const { return m_; }
    LLMINT8_INLINE int64_t k() const { return k_; }
    LLMINT8_INLINE int64_t padded_k() const { return padded_k_; }  // multiple of 64; padding digits are zero
    LLMINT8_INLINE int64_t unit() const { return unit_; }
    LLMINT8_INLINE int64_t blocks() const { return blocks_; }
    LLMINT8_INLINE int64_t block_begin(int64_t b) const {
        return b * (m_ / blocks_) + (b < m_ % blocks_ ? b : m_ % blocks_);
    }
    LLMINT8_INLINE int64_t block_rows(int64_t b) const { return m_ / blocks_ + (b < m_ % blocks_ ? 1 : 0); }

    // Digits of block b: word w of its row r lies 4 * (w * block_rows(b) + r) bytes in. Digit must be the
    // type whose size the constructor was given.
    template <class Digit>
    LLMINT8_INLINE Digit* lo(int64_t b) const {
        return reinterpret_cast<Digit*>(lo_) + block_begin(b) * padded_k_;
    }
    template <class Digit>
    LLMINT8_INLINE Digit* hi(int64_t b) const {
        return reinterpret_cast<Digit*>(hi_) + block_begin(b) * padded_k_;
    }

    // Indices of the units of a row that hold a non-zero high digit.
    LLMINT8_INLINE uint32_t* high_units(int64_t row) const { return units_ + row * (padded_k_ / unit_); }
    LLMINT8_INLINE uint32_t& high_count(int64_t row) const { return counts_[row]; }
    LLMINT8_INLINE RowScale& scale(int64_t row) const { return scales_[row]; }

    // Take over a row that was quantised into plain digits, padded with zeros to padded_k().
    void store(int64_t row, const int8_t* lo, const int8_t* hi, const RowScale& scale);

  private:
    int64_t block_of(int64_t row) const;

    template <class Digit>
    uint32_t store_digits(int64_t row, const int8_t* lo, const int8_t* hi, bool has_high);

    int64_t m_, k_, padded_k_, digit_bytes_, blocks_, unit_;
    Buffer memory_;
    uint8_t *lo_, *hi_;
    uint32_t *units_, *counts_;
    RowScale* scales_;
};

}  // namespace llmint8
