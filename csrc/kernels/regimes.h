// The two regimes of the int8 product, written once; an instruction set plugs in its microkernels.
//
// Few rows: weights are read once, straight from the row-major matrix, as dot products along k.
// Many rows: a tile of weight rows becomes a panel [word along k][column][digits of a word] in a scratch that
// fits L2, and small tiles of sums stay in registers while one word of a row is broadcast at a time. An
// outlier costs one more product, because its word in the panel is found by index.
//
// Internal linkage, as in float_bits.h and for the same reason. An Isa provides, as static members:
//   Digit, Panel               element types of the activations and of a panel; they have one size
//   kColumns, kMaxRows         columns of a panel; rows of a tile of sums
//   kDotRows, kDotColumns      rows of x and rows of the weight that one dot product pass reads side by side
//   kUnit                      digits that a dot product loads at once; divides 64
//   kFewRows                   up to here packing a panel costs more than it saves
//   kOffset                    what was added to every weight; the row's digit sum undoes it
//   dot<R>(columns, digits, k, sums)         sums[r][0 .. kDotColumns) of R plain rows
//   dot_units(columns, units, sums)          the same for the listed units of one row
//   pack_panel(product, begin, end, panel)   weight rows [begin, end), repeated to kColumns
//   tile<R>(panel, digits, words, sums)      sums[r][0 .. kColumns) of an interleaved block of R rows
//   tile_units<R>(panel, units, sums)        the same for the listed words
#pragma once

#include "kernels/epilogue.h"
#include "kernels/weight_rows.h"

namespace llmint8 {
namespace {

template <class Isa>
using Digit = typename Isa::Digit;

// Those that a dot product reads.
template <class Isa>
using DotColumns = WeightRows<Isa::kDotColumns>;

// Sums modulo 2^32 (-fwrapv): the offset may overflow on the way, the true sum fits.
template <class Isa>
inline void undo_offset(int32_t* sums, int32_t digit_sum) {
    if (Isa::kOffset == 0) return;
    for (int c = 0; c < Isa::kColumns; ++c) sums[c] -= Isa::kOffset * digit_sum;
}

// Digits of a plain row, low or high, and where their sums go.
template <class Isa>
struct DotRow {
    const Digit<Isa>* digits;
    int32_t* sums;
};

// Calls a microkernel of the Isa with the number of rows as a constant.
template <class Isa, int kRows>
struct Rows {
    using Sums = int32_t (*)[Isa::kColumns];

    static void dot(int64_t rows, const DotColumns<Isa>& w, const DotRow<Isa>* row, int64_t k, int64_t at) {
        if (rows == kRows) {
            Isa::template dot<kRows>(w, row, k, at);
        } else {
            Rows<Isa, kRows - 1>::dot(rows, w, row, k, at);
        }
    }

    static void tile(int64_t rows, const typename Isa::Panel* panel, const void* digits, int64_t words,
                     Sums sums) {
        if (rows == kRows) {
            Isa::template tile<kRows>(panel, static_cast<const Digit<Isa>*>(digits), words, sums);
        } else {
            Rows<Isa, kRows - 1>::tile(rows, panel, digits, words, sums);
        }
    }

    static void tile_units(int64_t rows, const typename Isa::Panel* panel, const HighUnits& units,
                           Sums sums) {
        if (rows == kRows) {
            Isa::template tile_units<kRows>(panel, units, sums);
        } else {
            Rows<Isa, kRows - 1>::tile_units(rows, panel, units, sums);
        }
    }
};

template <class Isa>
struct Rows<Isa, 0> {
    using Sums = int32_t (*)[Isa::kColumns];

    static void dot(int64_t, const DotColumns<Isa>&, const DotRow<Isa>*, int64_t, int64_t) {}
    static void tile(int64_t, const typename Isa::Panel*, const void*, int64_t, Sums) {}
    static void tile_units(int64_t, const typename Isa::Panel*, const HighUnits&, Sums) {}
};

// The sums of up to kRows rows of a product in one tile of columns.
template <class Isa, int kRows>
struct TileSums {
    // Those of one row, for the epilogue.
    DigitSums take(int64_t r, const RowScale& scale) {
        undo_offset<Isa>(low[r], scale.lo_sum);
        if (scale.has_high) undo_offset<Isa>(high[r], scale.hi_sum);
        return {low[r], scale.has_high ? high[r] : nullptr};
    }

    alignas(64) int32_t low[kRows][Isa::kColumns], high[kRows][Isa::kColumns];
};

// All rows, which are few, times one tile of columns.
template <class Isa>
void few_rows_sums(const Product& product, int64_t begin, int64_t end, TileSums<Isa, Isa::kFewRows>& sums) {
    const QuantizedRows& rows = *product.rows;
    const int64_t m = rows.m(), k = rows.k();
    DotRow<Isa> pass[2 * Isa::kFewRows];  // high digits that are kept whole are one more row
    int64_t passes = 0;
    for (int64_t row = 0; row < m; ++row) {
        const Block& block = rows.block(row);
        pass[passes++] = {static_cast<const Digit<Isa>*>(block.lo), sums.low[row]};
        if (block.high == High::kWhole) {
            pass[passes++] = {static_cast<const Digit<Isa>*>(block.units.digits), sums.high[row]};
        }
    }
    for (int64_t n = begin; n < begin + Isa::kColumns; n += Isa::kDotColumns) {
        const DotColumns<Isa> w(product, n, end);
        const int64_t at = n - begin;
        for (int64_t p = 0; p < passes; p += Isa::kDotRows) {
            const int64_t count = passes - p < Isa::kDotRows ? passes - p : Isa::kDotRows;
            Rows<Isa, Isa::kDotRows>::dot(count, w, pass + p, k, at);
        }
        for (int64_t row = 0; row < m; ++row) {
            if (rows.block(row).high == High::kOwn) {
                Isa::dot_units(w, rows.row(row).units, &sums.high[row][at]);
            }
        }
    }
}

// One block of rows times one panel.
template <class Isa>
void block_sums(const QuantizedRows& rows, int64_t b, const typename Isa::Panel* panel,
                TileSums<Isa, Isa::kMaxRows>& sums) {
    using OneOf = Rows<Isa, Isa::kMaxRows>;
    constexpr int64_t kWord = kWordBytes / static_cast<int64_t>(sizeof(Digit<Isa>));
    const int64_t words = (rows.k() + kWord - 1) / kWord;
    const Block& block = rows.block(b);
    OneOf::tile(block.rows, panel, block.lo, words, sums.low);
    if (block.high == High::kShared) OneOf::tile_units(block.rows, panel, block.units, sums.high);
    if (block.high == High::kWhole) OneOf::tile(block.rows, panel, block.units.digits, words, sums.high);
    for (int64_t r = 0; block.high == High::kOwn && r < block.rows; ++r) {
        const Row& row = rows.row(block.begin + r);
        if (row.scale.has_high) Isa::template tile_units<1>(panel, row.units, &sums.high[r]);
    }
}

// Outputs of rows from `first` on, of both products of a call.
template <class Isa, int kRows>
void finish_rows(const LinearCall& call, const ColumnScales<Isa::kColumns>& columns, int64_t begin,
                 int64_t end, int64_t first, int64_t count, TileSums<Isa, kRows>& codes,
                 TileSums<Isa, kRows>& second) {
    for (int64_t r = 0; r < count; ++r) {
        const int64_t row = first + r;
        const DigitSums sums = codes.take(r, call.rows->row(row).scale);
        if (call.p == 0) {
            finish_row(call, columns, row, begin, end, sums, nullptr);
        } else {
            const DigitSums more = second.take(r, call.outlier_rows->row(row).scale);
            finish_row(call, columns, row, begin, end, sums, &more);
        }
    }
}

template <class Isa>
void few_rows(const LinearCall& call, int64_t begin, int64_t end) {
    TileSums<Isa, Isa::kFewRows> codes, second;
    few_rows_sums<Isa>(call.codes(), begin, end, codes);
    if (call.p > 0) few_rows_sums<Isa>(call.second_digits(), begin, end, second);
    const ColumnScales<Isa::kColumns> columns(call, begin, end);
    finish_rows<Isa>(call, columns, begin, end, 0, call.rows->m(), codes, second);
}

// Elements of a panel of a weight that is multiplied with these rows.
template <class Isa>
int64_t panel_size(const QuantizedRows& rows) {
    return rows.padded_k() * Isa::kColumns;
}

// All blocks of many rows, against a panel of the codes and one of the second digits.
template <class Isa>
void many_rows(const LinearCall& call, int64_t begin, int64_t end, typename Isa::Panel* panel) {
    typename Isa::Panel* second_panel = panel + panel_size<Isa>(*call.rows);
    Isa::pack_panel(call.codes(), begin, end, panel);
    if (call.p > 0) Isa::pack_panel(call.second_digits(), begin, end, second_panel);
    const ColumnScales<Isa::kColumns> columns(call, begin, end);
    TileSums<Isa, Isa::kMaxRows> codes, second;
    for (int64_t b = 0; b < call.rows->blocks(); ++b) {
        const Block& block = call.rows->block(b);
        block_sums<Isa>(*call.rows, b, panel, codes);
        if (call.p > 0) block_sums<Isa>(*call.outlier_rows, b, second_panel, second);
        finish_rows<Isa>(call, columns, begin, end, block.begin, block.rows, codes, second);
    }
}

template <class Isa>
int64_t rows_per_block(int64_t m) {
    return m <= Isa::kFewRows ? 1 : Isa::kMaxRows;
}

template <class Isa>
int64_t scratch_bytes(const LinearCall& call) {
    if (call.rows->m() <= Isa::kFewRows) return 0;
    const int64_t second = call.p > 0 ? panel_size<Isa>(*call.outlier_rows) : 0;
    return (panel_size<Isa>(*call.rows) + second) * static_cast<int64_t>(sizeof(typename Isa::Panel));
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
            Isa::kUnit,
            rows_per_block<Isa>,
            scratch_bytes<Isa>,
            quantize_row,
            linear_columns<Isa>};
}

}  // namespace
}  // namespace llmint8
