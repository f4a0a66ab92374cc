#include "quantized_rows.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>

namespace llmint8 {

namespace {

bool all_zero(const int8_t* digits) {
    uint64_t words[kPadding / 8], any = 0;
    std::memcpy(words, digits, sizeof words);
    for (uint64_t two : words) any |= two;
    return any == 0;
}

// Calls visit(unit) for every unit of a row that holds a non-zero digit; most of a row is passed quickly.
template <class Visit>
void for_each_unit(const int8_t* digits, int64_t padded_k, int64_t unit, const Visit& visit) {
    for (int64_t i = 0; i < padded_k; i += kPadding) {
        if (all_zero(digits + i)) continue;
        for (int64_t j = i; j < i + kPadding; j += 8) {
            uint64_t eight;
            std::memcpy(&eight, digits + j, sizeof eight);
            while (eight != 0) {
                const int64_t u =
                    (j + __builtin_ctzll(eight) / 8) / unit;  // the first digit is the lowest byte
                visit(u);
                const int64_t next = (u + 1) * unit - j;
                if (next >= 8) {
                    j += next - 8;  // nothing else of this unit
                    break;
                }
                eight &= ~uint64_t{0} << 8 * next;
            }
        }
    }
}

// Marks the words of a row that hold a non-zero digit, and counts them. Without branches, which vectorises.
template <class Word>
int64_t mark_words(const int8_t* digits, int64_t words, uint8_t* used) {
    int64_t count = 0;
    for (int64_t begin = 0; begin < words; begin += kPadding / kWordBytes) {
        uint8_t part = 0;
        for (int64_t w = begin; w < begin + kPadding / kWordBytes; ++w) {
            Word word;
            std::memcpy(&word, digits + w * static_cast<int64_t>(sizeof word), sizeof word);
            const uint8_t nonzero = word != 0;
            used[w] |= nonzero;
            part += nonzero;
        }
        count += part;
    }
    return count;
}

// Digits as they are, or widened.
template <class Digit>
inline void copy_digits(const int8_t* from, int64_t count, Digit* to) {
    if constexpr (std::is_same_v<Digit, int8_t>) {
        std::memcpy(to, from, static_cast<size_t>(count));
    } else {
        for (int64_t i = 0; i < count; ++i) to[i] = from[i];
    }
}

// A unit: mostly a word, whose size the compiler should know.
template <class Digit>
inline void copy_unit(const int8_t* from, int64_t unit, Digit* to) {
    constexpr int64_t kWord = kWordBytes / static_cast<int64_t>(sizeof(Digit));
    if (unit == kWord) return copy_digits(from, kWord, to);
    copy_digits(from, unit, to);
}

// Plain rows to groups of kDigits digits of each row in turn, with room for `room` rows. flip: what the bits
// of each word are changed by.
template <int kDigits, class Digit>
void interleave_rows(const int8_t* from, int64_t rows, int64_t room, int64_t padded_k, uint32_t flip,
                     Digit* to) {
    if (room == 1) return copy_digits(from, padded_k, to);
    constexpr int64_t kPiece = 256;  // digits of each row, whose groups stay in the first-level cache
    for (int64_t begin = 0; begin < padded_k; begin += kPiece) {
        const int64_t end = begin + kPiece < padded_k ? begin + kPiece : padded_k;
        for (int64_t r = 0; r < rows; ++r) {
            const int8_t* row = from + r * padded_k;
            Digit* at = to + begin * room + r * kDigits;
            for (int64_t i = begin; i < end; i += kDigits, at += room * kDigits) {
                copy_digits(row + i, kDigits, at);
                if (flip == 0) continue;
                uint32_t word;
                std::memcpy(&word, at, sizeof word);
                word ^= flip;
                std::memcpy(at, &word, sizeof word);
            }
        }
    }
}

// Bytes between blocks: plain rows a power of two apart would all fall into one set of the cache.
constexpr int64_t kSkew = 64;

}  // namespace

void FreeAligned::operator()(void* p) const {
    std::free(p);
}

Buffer allocate(int64_t bytes) {
    void* p = std::aligned_alloc(64, static_cast<size_t>(round_up(bytes > 0 ? bytes : 1, 64)));
    if (p == nullptr) throw std::bad_alloc();
    return Buffer(static_cast<uint8_t*>(p));
}

QuantizedRows::QuantizedRows(int64_t m, int64_t k, const DigitLayout& layout)
    : layout_(layout),
      m_(m),
      k_(k),
      padded_k_(round_up(k, kPadding)),
      blocks_((m + layout.rows_per_block - 1) / layout.rows_per_block),
      unit_(layout.rows_per_block == 1 ? layout.unit : kWordBytes / layout.digit_bytes) {
    const int64_t rows = layout.lanes > 0 ? blocks_ * layout.lanes : m;
    const int64_t digits = 2 * (rows * padded_k_ * layout.digit_bytes + blocks_ * kSkew);
    const int64_t block_bytes = round_up(blocks_ * static_cast<int64_t>(sizeof(Block)), 64);
    memory_ = allocate(digits + block_bytes + m * static_cast<int64_t>(sizeof(Row)));
    digits_ = memory_.get();
    block_ = reinterpret_cast<Block*>(digits_ + digits);
    row_ = reinterpret_cast<Row*>(digits_ + digits + block_bytes);
}

// Which units of the rows of a block hold a high digit (used, one byte each), and the cheapest form for them.
High QuantizedRows::choose_form(const Block& block, const int8_t* hi, uint8_t* used) {
    const int64_t units = padded_k_ / unit_;
    std::memset(used, 0, static_cast<size_t>(units));
    int64_t total = 0, most = 0;
    for (int64_t r = 0; r < block.rows; ++r) {
        Row& row = row_[block.begin + r];
        if (!row.scale.has_high) continue;
        const int8_t* digits = hi + r * padded_k_;
        if (unit_ == 4) {
            row.units.count = mark_words<uint32_t>(digits, units, used);
        } else if (unit_ == 2) {
            row.units.count = mark_words<uint16_t>(digits, units, used);
        } else {
            for_each_unit(digits, padded_k_, unit_, [&](int64_t u) { used[u] = 1, ++row.units.count; });
        }
        total += row.units.count;
        most = std::max(most, row.units.count);
    }
    const int64_t shared = std::count(used, used + units, 1);
    const double shared_cost = layout_.shared_cost * static_cast<double>(block.rows * shared);
    const double own_cost = layout_.own_cost * static_cast<double>(total);
    double cost = static_cast<double>(block.rows * ((k_ + unit_ - 1) / unit_));
    High form = High::kWhole;
    // A list and its digits must also fit where the whole row would lie.
    if (block.rows > 1 && 4 * round_up(shared, units_per_group()) <= 3 * units && shared_cost < cost)
        form = High::kShared, cost = shared_cost;
    if (2 * most <= units && own_cost < cost) form = High::kOwn;
    return form;
}

template <class Digit>
void QuantizedRows::store_high(Block& block, const int8_t* hi, uint8_t* used, uint8_t* to) {
    const int64_t units = padded_k_ / unit_, unit_bytes = unit_ * static_cast<int64_t>(sizeof(Digit));
    block.high = layout_.lanes > 0 ? High::kWhole : choose_form(block, hi, used);
    if (block.high == High::kWhole) {
        block.units = {to, nullptr, units};
        interleave(hi, block.rows, reinterpret_cast<Digit*>(to));
    } else if (block.high == High::kShared) {
        const int64_t shared = std::count(used, used + units, 1), per_group = units_per_group();
        const int64_t groups = round_up(shared, per_group) / per_group, group = per_group * unit_;
        auto* digits = reinterpret_cast<Digit*>(to);
        auto* index = reinterpret_cast<uint16_t*>(to + groups * block.rows * layout_.group_bytes);
        block.units = {digits, index, shared};
        if (groups * per_group > shared) {
            std::memset(digits + (groups - 1) * block.rows * group, 0,
                        static_cast<size_t>(block.rows * layout_.group_bytes));
        }
        int64_t count = 0;
        for (int64_t u = 0; u < units; ++u) {
            if (used[u] == 0) continue;
            Digit* at = digits + count / per_group * block.rows * group + count % per_group * unit_;
            for (int64_t r = 0; r < block.rows; ++r) {
                copy_unit(hi + r * padded_k_ + u * unit_, unit_, at + r * group);
            }
            index[count++] = static_cast<uint16_t>(u);
        }
    } else {
        for (int64_t r = 0; r < block.rows; ++r, to += units * unit_bytes) {
            HighUnits& own = row_[block.begin + r].units;
            auto* digits = reinterpret_cast<Digit*>(to);
            auto* index = reinterpret_cast<uint16_t*>(to + own.count * unit_bytes);
            own.digits = digits, own.index = index;
            if (own.count == 0) continue;
            const int8_t* row = hi + r * padded_k_;
            for_each_unit(row, padded_k_, unit_, [&](int64_t u) {
                *index++ = static_cast<uint16_t>(u);
                copy_unit(row + u * unit_, unit_, digits);
                digits += unit_;
            });
        }
    }
}

template <class Digit>
void QuantizedRows::interleave(const int8_t* from, int64_t rows, Digit* to) const {
    constexpr int kWord = kWordBytes / sizeof(Digit), kRow = kPadding / sizeof(Digit);
    const uint32_t flip = layout_.lanes > 0 ? 0x80808080u : 0;
    if (layout_.group_bytes == kWordBytes) {
        interleave_rows<kWord>(from, rows, room(rows), padded_k_, flip, to);
    } else {
        interleave_rows<kRow>(from, rows, room(rows), padded_k_, flip, to);
    }
}

template <class Digit>
void QuantizedRows::store_digits(Block& block, const int8_t* lo, const int8_t* hi, uint8_t* used,
                                 uint8_t* low, uint8_t* high) {
    block.lo = low;
    interleave(lo, block.rows, reinterpret_cast<Digit*>(low));
    if (block.high == High::kNone || (layout_.lanes > 0 && store_slots(block, hi, used, high))) return;
    store_high<Digit>(block, hi, used, high);
}

void QuantizedRows::store(int64_t b, const int8_t* lo, const int8_t* hi, const RowScale* scales,
                          uint8_t* scratch) {
    Block& block = block_[b];
    block = {block_begin(b), block_rows(b), nullptr, High::kNone, {}};
    for (int64_t r = 0; r < block.rows; ++r) {
        row_[block.begin + r] = {scales[r], {}};
        if (scales[r].has_high) block.high = High::kOwn;
    }
    const int64_t row_bytes = padded_k_ * layout_.digit_bytes, rows = room(block.rows);
    // Blocks in lanes are read side by side: their low digits lie next to each other.
    const bool together = layout_.lanes > 0;
    uint8_t* low = digits_ + (together ? b * rows : 2 * block.begin) * row_bytes + b * kSkew;
    uint8_t* high = low + (together ? blocks_ * (rows * row_bytes + kSkew) : rows * row_bytes);
    if (layout_.digit_bytes == 1) {
        store_digits<int8_t>(block, lo, hi, scratch, low, high);
    } else {
        store_digits<int16_t>(block, lo, hi, scratch, low, high);
    }
}

}  // namespace llmint8
