// Quantised activations as a type: where the digits of each row lie, and which of them are outliers.
//
// Digits are int8 or, for kernels that multiply 16-bit integers, int16. Rows are grouped in blocks of nearly
// equal size; inside a block, groups of a kernel's choice of each row alternate ([group][row][bytes]), so
// that a kernel which handles a block at a time reads one stream. A block of one row is simply that row.
//
// High digits are mostly zero, so a block keeps them in whichever form costs its kernel least: not at all, as
// a list of the units that hold a non-zero one (one list for all rows where they share their outliers, else
// one for each row), or whole, as the low digits. A unit is a word of four bytes (4 or 2 consecutive digits),
// or in a plain row what the kernel asks. Units listed for a block are in groups as the low digits, with
// zeros after the last. Where rows lie in the lanes of a register, lists become slots: 128 digits of k at a
// time, the first non-zero word of each row, then the second, as long as there are any; or a slot for each
// word that some row has, where these are hardly more.
#pragma once

#include <cstdint>
#include <memory>

// Files of different instruction-set flags include this: a member that is not inlined would be kept once by
// the linker, perhaps from the file whose instructions this CPU lacks.
#define LLMINT8_INLINE inline __attribute__((always_inline))

namespace llmint8 {

constexpr int64_t kWordBytes = 4;       // the digits that a dot-product instruction multiplies and sums
constexpr int64_t kSlotWindow = 128;    // digits of k that the places of a slot point into
constexpr uint16_t kOnePlace = 0x8000;  // of a slot: all its rows have the same, which is a whole word of k
constexpr double kNever = 1e9;          // a cost that nothing is worth
constexpr int64_t kPadding = 64;        // rows are padded with zero digits to a multiple of this
constexpr int64_t kMaxK = 131072;       // 128 * 127 * K must fit int32

// The next multiple of step. Of internal linkage, for what is said above.
static constexpr int64_t round_up(int64_t value, int64_t step) {
    return (value + step - 1) / step * step;
}

struct FreeAligned {
    void operator()(void* p) const;
};
using Buffer = std::unique_ptr<uint8_t, FreeAligned>;

// 64-byte aligned, not initialised. Throws std::bad_alloc.
Buffer allocate(int64_t bytes);

struct RowScale {
    float scale;     // 0: the row is zero; NaN: the row is not finite
    int32_t lo_sum;  // sums of the digits, by which unsigned-by-signed kernels undo their offset
    int32_t hi_sum;
    bool has_high;
    // The sums of both digits may be one int32, low + 256 * high: the epilogue would round them to the same
    // float. Of a row that was stored: they are.
    bool joint;
};

// Whether they may, given the sums of the magnitudes of the digits: codes are at most 128, floats hold
// integers up to 2^24, and 128 * 65000 * 256 + 2^24 < 2^31.
static constexpr bool can_join(int64_t lo_magnitudes, int64_t hi_magnitudes) {
    return lo_magnitudes <= (1 << 24) / 128 && hi_magnitudes <= 65000;
}

class QuantizedRows;
struct Block;

// What a kernel asks of the digits.
struct DigitLayout {
    int64_t rows_per_block;  // at most; 1 means plain rows
    int64_t digit_bytes;     // 1 or 2
    int64_t unit;  // digits in a high unit of a plain row: what a dot product loads at once; divides 64
    int64_t group_bytes;  // bytes of a row in a group: a word, or as many as rows are padded to
    // What a high unit costs the kernel, in those of the dense product: listed for a block or for a row.
    double shared_cost, own_cost;
    // Which words of `count` int8 digits are not zero, 32 bits at a time; null: no faster way than any
    // unit's.
    void (*mark_words)(const int8_t* digits, int64_t count, uint32_t* masks) = nullptr;
    bool joins = false;  // it adds joint sums up, but for those of a block whose high digits are whole
    // Rows in the lanes of a register, a block of them: a whole block takes the room of so many, its digits
    // are stored as unsigned bytes, 128 more, and the listed ones in slots. 0: none of this.
    int64_t lanes = 0;
    // For lanes: high digits of a block, hi, to slots, if these cost less. scratch: 2 * padded_k bytes.
    bool (*store_slots)(const QuantizedRows& rows, const int8_t* hi, uint8_t* scratch, uint8_t* to,
                        Block& block) = nullptr;
};

// Units that hold a non-zero high digit: their digits ([unit][row] of the block or row), and which they are.
// Of slots: those, and of which 128 digits of k each is, with kOnePlace or without.
struct HighUnits {
    const void* digits;
    const uint16_t* index;
    int64_t count;
};

enum class High : uint8_t {
    kNone,
    kShared,  // one list for the block
    kOwn,     // one list for each row
    kWhole,   // as the low digits
    kSlots,   // of 16 rows: in the order of k, the words of one slot, then their places, an int32 each
};

struct Block {
    int64_t begin, rows;
    const void* lo;
    High high;
    HighUnits units;  // kShared: the list; kWhole: the digits; kSlots: the slots
};

struct Row {
    RowScale scale;
    HighUnits units;  // kOwn
};

class QuantizedRows {
  public:
    QuantizedRows(int64_t m, int64_t k, const DigitLayout& layout);

    LLMINT8_INLINE int64_t m() const { return m_; }
    LLMINT8_INLINE int64_t k() const { return k_; }
    LLMINT8_INLINE int64_t padded_k() const { return padded_k_; }
    LLMINT8_INLINE int64_t blocks() const { return blocks_; }
    LLMINT8_INLINE const Block& block(int64_t b) const { return block_[b]; }
    LLMINT8_INLINE const Row& row(int64_t r) const { return row_[r]; }

    // The rows of a block: first and count.
    int64_t block_begin(int64_t b) const {
        return b * (m_ / blocks_) + (b < m_ % blocks_ ? b : m_ % blocks_);
    }
    int64_t block_rows(int64_t b) const { return m_ / blocks_ + (b < m_ % blocks_ ? 1 : 0); }

    // Where the digits of a block may be written before it is stored, and stay; null where they take another
    // form.
    int8_t* plain_low(int64_t b) const { return is_plain() ? reinterpret_cast<int8_t*>(low(b)) : nullptr; }
    int8_t* plain_high(int64_t b) const {
        return is_plain() && !lists_units() ? reinterpret_cast<int8_t*>(high(b)) : nullptr;
    }

    // Of a row, before its block is stored.
    void set_scale(int64_t r, const RowScale& scale) { row_[r] = {scale, {}}; }

    // Take over a block whose rows were quantised into plain digits [rows][padded_k], padded with zeros. High
    // ones of a row that has none are set to zero where others have some. scratch: 2 * padded_k bytes.
    void store(int64_t b, const int8_t* lo, int8_t* hi, uint8_t* scratch);

  private:
    bool is_plain() const { return layout_.rows_per_block == 1 && layout_.digit_bytes == 1; }
    // Whether high digits may be listed.
    bool lists_units() const { return layout_.own_cost < kNever || layout_.shared_cost < kNever; }
    // Rows whose room a block takes.
    int64_t room(int64_t rows) const { return layout_.lanes > 0 ? layout_.lanes : rows; }
    int64_t row_bytes() const { return padded_k_ * layout_.digit_bytes; }
    // Digits of a block. In lanes blocks are read side by side: their low digits lie next to each other.
    uint8_t* low(int64_t b) const;
    uint8_t* high(int64_t b) const;
    int64_t units_per_group() const { return layout_.group_bytes / kWordBytes; }

    template <class Digit>
    void interleave(const int8_t* from, int64_t rows, Digit* to) const;
    template <class Digit>
    void store_digits(Block& block, const int8_t* lo, const int8_t* hi, uint8_t* scratch, uint8_t* low,
                      uint8_t* high);
    template <class Digit>
    void store_high(Block& block, const int8_t* hi, uint8_t* scratch, uint8_t* to);
    int64_t choose_form(Block& block, const int8_t* hi, uint32_t* shared, uint8_t* to) const;
    void mark_units(const int8_t* digits, uint32_t* masks) const;
    // Of the units of a row, in words of 32 bits.
    int64_t masks() const { return (padded_k_ / unit_ + 31) / 32; }
    // In the last quarter of what the high digits of row r of a block take from `to` on.
    uint32_t* masks_of(uint8_t* to, int64_t r) const {
        return reinterpret_cast<uint32_t*>(to + (r + 1) * row_bytes() - row_bytes() / 4);
    }

    DigitLayout layout_;
    int64_t m_, k_, padded_k_, blocks_;
    int64_t unit_;  // digits of one: of a plain row, or a word
    Buffer memory_;
    uint8_t* digits_;  // of each block: low, then high
    Block* block_;
    Row* row_;
};

}  // namespace llmint8
