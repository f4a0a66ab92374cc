#include "quantized_rows.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "interleave.h"

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

// A unit: mostly a word, whose size the compiler should know.
template <class Digit>
inline void copy_unit(const int8_t* from, int64_t unit, Digit* to) {
    constexpr int64_t kWord = kWordBytes / static_cast<int64_t>(sizeof(Digit));
    if (unit == kWord) return copy_digits(from, kWord, to);
    copy_digits(from, unit, to);
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

void QuantizedRows::mark_units(const int8_t* digits, uint32_t* masks) const {
    if (layout_.mark_words != nullptr) return layout_.mark_words(digits, padded_k_, masks);
    std::fill_n(masks, this->masks(), 0);
    for_each_unit(digits, padded_k_, unit_, [&](int64_t u) { masks[u / 32] |= uint32_t{1} << u % 32; });
}

// Marks the units of each row of a block that hold a high digit, and those of all rows (shared, as many as
// are returned); and chooses the cheapest form for them.
int64_t QuantizedRows::choose_form(Block& block, const int8_t* hi, uint32_t* shared, uint8_t* to) const {
    if (!lists_units()) return 0;
    std::fill_n(shared, masks(), 0);
    int64_t total = 0, most = 0, count = 0;
    for (int64_t r = 0; r < block.rows; ++r) {
        if (!row_[block.begin + r].scale.has_high) continue;
        uint32_t* const own = masks_of(to, r);
        mark_units(hi + r * padded_k_, own);
        int64_t units = 0;
        for (int64_t i = 0; i < masks(); ++i) {
            shared[i] |= own[i];
            units += __builtin_popcount(own[i]);
        }
        total += units;
        most = std::max(most, units);
    }
    for (int64_t i = 0; i < masks(); ++i) count += __builtin_popcount(shared[i]);
    const int64_t units = padded_k_ / unit_;
    const double shared_cost = layout_.shared_cost * static_cast<double>(block.rows * count);
    const double own_cost = layout_.own_cost * static_cast<double>(total);
    double cost = static_cast<double>(block.rows * ((k_ + unit_ - 1) / unit_));
    // A list and its digits must also fit where the whole row would lie, and for a row's own beside its
    // masks.
    if (block.rows > 1 && 4 * round_up(count, units_per_group()) <= 3 * units && shared_cost < cost)
        block.high = High::kShared, cost = shared_cost;
    if (2 * most <= units && own_cost < cost) block.high = High::kOwn;
    return count;
}

// The units of a row that are marked, as a list. Returns their number.
int64_t list_units(const uint32_t* masks, int64_t count, uint16_t* index) {
    const uint16_t* const begin = index;
    for (int64_t i = 0; i < count; ++i) {
        for (uint32_t left = masks[i]; left != 0; left &= left - 1)
            *index++ = static_cast<uint16_t>(32 * i + __builtin_ctz(left));
    }
    return index - begin;
}

template <class Digit>
void QuantizedRows::store_high(Block& block, const int8_t* hi, uint8_t* scratch, uint8_t* to) {
    auto* const shared = reinterpret_cast<uint32_t*>(scratch);
    const int64_t count = choose_form(block, hi, shared, to);
    if (block.high == High::kWhole) {
        block.units = {to, nullptr, padded_k_ / unit_};
        interleave(hi, block.rows, reinterpret_cast<Digit*>(to));
    } else if (block.high == High::kShared) {
        const int64_t per_group = units_per_group(), groups = round_up(count, per_group) / per_group;
        const int64_t group = per_group * unit_;
        auto* digits = reinterpret_cast<Digit*>(to);
        auto* index = reinterpret_cast<uint16_t*>(to + groups * block.rows * layout_.group_bytes);
        list_units(shared, masks(), index);
        block.units = {digits, index, count};
        if (groups * per_group > count) {
            std::memset(digits + (groups - 1) * block.rows * group, 0,
                        static_cast<size_t>(block.rows * layout_.group_bytes));
        }
        for (int64_t i = 0; i < count; ++i) {
            Digit* at = digits + i / per_group * block.rows * group + i % per_group * unit_;
            for (int64_t r = 0; r < block.rows; ++r) {
                copy_unit(hi + r * padded_k_ + index[i] * unit_, unit_, at + r * group);
            }
        }
    } else {
        for (int64_t r = 0; r < block.rows; ++r) {
            Row& row = row_[block.begin + r];
            if (!row.scale.has_high) continue;
            auto* const digits = reinterpret_cast<Digit*>(to + r * row_bytes());
            auto* const index = reinterpret_cast<uint16_t*>(to + r * row_bytes() + row_bytes() / 2);
            row.units = {digits, index, list_units(masks_of(to, r), masks(), index)};
            for (int64_t i = 0; i < row.units.count; ++i) {
                copy_unit(hi + r * padded_k_ + index[i] * unit_, unit_, digits + i * unit_);
            }
        }
    }
}

template <class Digit>
void QuantizedRows::interleave(const int8_t* from, int64_t rows, Digit* to) const {
    const int64_t stride = room(rows);
    if (stride == 1) {
        if (static_cast<const void*>(from) != to) copy_digits(from, padded_k_, to);
    } else if (layout_.group_bytes == kWordBytes) {
        interleave_words(from, rows, stride, padded_k_, layout_.lanes > 0 ? 0x80808080u : 0, to);
    } else {
        interleave_groups(from, rows, stride, padded_k_, to);
    }
}

template <class Digit>
void QuantizedRows::store_digits(Block& block, const int8_t* lo, const int8_t* hi, uint8_t* scratch,
                                 uint8_t* low, uint8_t* high) {
    block.lo = low;
    interleave(lo, block.rows, reinterpret_cast<Digit*>(low));
    if (block.high == High::kNone ||
        (layout_.lanes > 0 && layout_.store_slots(*this, hi, scratch, high, block)))
        return;
    store_high<Digit>(block, hi, scratch, high);
}

uint8_t* QuantizedRows::low(int64_t b) const {
    const int64_t before = layout_.lanes > 0 ? b * layout_.lanes : 2 * block_begin(b);
    return digits_ + before * row_bytes() + b * kSkew;
}

uint8_t* QuantizedRows::high(int64_t b) const {
    const int64_t bytes = room(block_rows(b)) * row_bytes();
    return low(b) + (layout_.lanes > 0 ? blocks_ * (bytes + kSkew) : bytes);
}

void QuantizedRows::store(int64_t b, const int8_t* lo, int8_t* hi, uint8_t* scratch) {
    Block& block = block_[b];
    block = {block_begin(b), block_rows(b), nullptr, High::kNone, {}};
    Row* const row = row_ + block.begin;
    bool joint = layout_.joins;
    for (int64_t r = 0; r < block.rows; ++r) joint = joint && row[r].scale.joint;
    if (std::any_of(row, row + block.rows, [](const Row& r) { return r.scale.has_high; })) {
        block.high = High::kWhole;  // or another form
        for (int64_t r = 0; r < block.rows; ++r) {
            if (!row[r].scale.has_high) std::memset(hi + r * padded_k_, 0, static_cast<size_t>(padded_k_));
        }
    }
    if (layout_.digit_bytes == 1) {
        store_digits<int8_t>(block, lo, hi, scratch, low(b), high(b));
    } else {
        store_digits<int16_t>(block, lo, hi, scratch, low(b), high(b));
    }
    joint = joint && (block.high != High::kWhole || layout_.rows_per_block == 1);
    for (int64_t r = 0; r < block.rows; ++r) row[r].scale.joint = joint;
}

}  // namespace llmint8
