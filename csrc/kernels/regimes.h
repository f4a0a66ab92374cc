// The two regimes of the int8 product, written once; an instruction set plugs in its microkernels.
//
// Few rows: weights are read once, straight from the row-major matrix, as dot products along k.
// Many rows: a tile of weight rows becomes a panel [word along k][column][digits of a word] in a scratch that
// fits L2, and small tiles of sums stay in registers while one word of a row is broadcast at a time. An
// outlier costs one more product, because its word in the panel is found by index.
//
// Internal linkage, like row_math.h and for the same reason. An Isa provides, as static members:
//   Digit, Panel               element types of the activations and of a panel; they have one size
//   kColumns, kMaxRows         columns of a panel; rows of a tile of sums
//   kDotRows, kDotColumns      rows of x and rows of the weight that one dot product pass reads side by side
//   kFewRows                   up to here packing a panel costs more than it saves
//   kOffset                    what was added to every weight; the row's digit sum undoes it
//   dot_low<R>, dot_high, pack_panel, tile_low<R>, row_high
#pragma once

#include "kernels/row_math.h"

namespace llmint8 {
namespace {

template <class Isa>
using Digit = typename Isa::Digit;

// Weight rows that a dot product reads; past the end of the matrix the last one repeats.
template <class Isa>
struct DotColumns {
    DotColumns(const LinearCall& call, int64_t n, int64_t end) {
        const int64_t k = call.rows->k();
        for (int c = 0; c < Isa::kDotColumns; ++c) at[c] = call.weight + (n + c < end ? n + c : end - 1) * k;
    }

    const int8_t* at[Isa::kDotColumns];
};

// Sums modulo 2^32 (-fwrapv): the offset may overflow on the way, the true sum fits.
template <class Isa>
inline void undo_offset(int32_t* sums, int32_t digit_sum) {
    if (Isa::kOffset == 0) return;
    for (int c = 0; c < Isa::kColumns; ++c) sums[c] -= Isa::kOffset * digit_sum;
}

// Calls Isa::dot_low or Isa::tile_low with the number of rows as a constant.
template <class Isa, int kRows>
struct Rows {
    static void dot(int64_t rows, const DotColumns<Isa>& w, const Digit<Isa>* lo, int64_t stride, int64_t k,
                    int32_t (*sums)[Isa::kColumns]) {
        if (rows == kRows) {
            Isa::template dot_low<kRows>(w, lo, stride, k, sums);
        } else {
            Rows<Isa, kRows - 1>::dot(rows, w, lo, stride, k, sums);
        }
    }

    static void tile(int64_t rows, const typename Isa::Panel* panel, const Digit<Isa>* lo, int64_t words,
                     int32_t (*sums)[Isa::kColumns]) {
        if (rows == kRows) {
            Isa::template tile_low<kRows>(panel, lo, words, sums);
        } else {
            Rows<Isa, kRows - 1>::tile(rows, panel, lo, words, sums);
        }
    }
};

template <class Isa>
struct Rows<Isa, 0> {
    static void dot(int64_t, const DotColumns<Isa>&, const Digit<Isa>*, int64_t, int64_t,
                    int32_t (*)[Isa::kColumns]) {}
    static void tile(int64_t, const typename Isa::Panel*, const Digit<Isa>*, int64_t,
                     int32_t (*)[Isa::kColumns]) {}
};

// All rows, which are few, of one tile of columns. sums[row] starts at the tile's first column.
template <class Isa>
void few_rows(const LinearCall& call, int64_t begin, int64_t end) {
    const QuantizedRows& rows = *call.rows;
    const int64_t m = rows.m(), k = rows.k(), stride = rows.padded_k();
    alignas(64) int32_t low[Isa::kFewRows][Isa::kColumns], high[Isa::kFewRows][Isa::kColumns];
    for (int64_t n = begin; n < end; n += Isa::kDotColumns) {
        const DotColumns<Isa> w(call, n, end);
        const int64_t at = n - begin;
        for (int64_t row = 0; row < m; row += Isa::kDotRows) {
            const int64_t count = m - row < Isa::kDotRows ? m - row : Isa::kDotRows;
            auto* sums = reinterpret_cast<int32_t (*)[Isa::kColumns]>(&low[row][at]);
            Rows<Isa, Isa::kDotRows>::dot(count, w, rows.lo<Digit<Isa>>(row), stride, k, sums);
        }
        for (int64_t row = 0; row < m; ++row) {
            if (rows.high_count(row) > 0) Isa::dot_high(w, rows, row, &high[row][at]);
        }
    }
    const ColumnScales<Isa::kColumns> columns(call, begin, end);
    for (int64_t row = 0; row < m; ++row) {
        const bool has_high = rows.high_count(row) > 0;
        undo_offset<Isa>(low[row], rows.scale(row).lo_sum);
        if (has_high) undo_offset<Isa>(high[row], rows.scale(row).hi_sum);
        finish_row(call, columns, row, begin, end, low[row], has_high ? high[row] : nullptr);
    }
}

// All blocks of many rows against one panel.
template <class Isa>
void many_rows(const LinearCall& call, int64_t begin, int64_t end, typename Isa::Panel* panel) {
    const QuantizedRows& rows = *call.rows;
    constexpr int64_t kWord = kWordBytes / static_cast<int64_t>(sizeof(Digit<Isa>));
    const int64_t words = (rows.k() + kWord - 1) / kWord;
    Isa::pack_panel(call, begin, end, panel);
    const ColumnScales<Isa::kColumns> columns(call, begin, end);
    alignas(64) int32_t low[Isa::kMaxRows][Isa::kColumns], high[Isa::kColumns];
    for (int64_t b = 0; b < rows.blocks(); ++b) {
        const int64_t count = rows.block_rows(b);
        Rows<Isa, Isa::kMaxRows>::tile(count, panel, rows.lo<Digit<Isa>>(b), words, low);
        for (int64_t r = 0; r < count; ++r) {
            const int64_t row = rows.block_begin(b) + r;
            const uint32_t high_count = rows.high_count(row);
            undo_offset<Isa>(low[r], rows.scale(row).lo_sum);
            if (high_count > 0) {
                const Digit<Isa>* hi = rows.hi<Digit<Isa>>(b) + kWord * r;
                Isa::row_high(panel, hi, kWord * count, rows.high_units(row), high_count, high);
                undo_offset<Isa>(high, rows.scale(row).hi_sum);
            }
            finish_row(call, columns, row, begin, end, low[r], high_count > 0 ? high : nullptr);
        }
    }
}

template <class Isa>
int64_t rows_per_block(int64_t m) {
    return m <= Isa::kFewRows ? 1 : Isa::kMaxRows;
}

template <class Isa>
int64_t scratch_bytes(const QuantizedRows& rows) {
    const int64_t element = static_cast<int64_t>(sizeof(typename Isa::Panel));
    return rows.m() <= Isa::kFewRows ? 0 : rows.padded_k() * Isa::kColumns * element;
}

template <class Isa>
void linear_columns(const LinearCall& call, int64_t begin, int64_t end, void* scratch) {
    if (call.rows->m() <= Isa::kFewRows) {
        few_rows<Isa>(call, begin, end);
    } else {
        many_rows<Isa>(call, begin, end, static_cast<typename Isa::Panel*>(scratch));
    }
}

template <class Isa>
constexpr KernelTable make_table(const char* name, uint32_t required_features) {
    return {name,
            required_features,
            Isa::kColumns,
            sizeof(Digit<Isa>),
            rows_per_block<Isa>,
            scratch_bytes<Isa>,
            quantize_row,
            linear_columns<Isa>};
}

}  // namespace
}  // namespace llmint8
