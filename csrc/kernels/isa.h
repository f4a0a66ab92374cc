// What the regimes of the int8 product (regimes.h) ask of an instruction set. Internal linkage, as in
// float_bits.h and for the same reason. An Isa provides, as static members:
//   Digit, Panel               element types of the activations and of a panel; they have one size
//   kColumns, kMaxRows         columns of a panel; rows of a tile of sums
//   kDotRows, kDotColumns      rows of x and rows of the weight that one dot product pass reads side by side
//   kUnit                      digits that a dot product loads at once; divides 64
//   kFewRows                   up to here packing a panel costs more than it saves
//   kOffset                    what was added to every weight; the row's digit sum undoes it
//   kHighFirst                 dot products begin with the high digits of joint rows
//   nonzero(digits)            which of 64 are not zero, a bit each; if kHighFirst
//   dot<R>(columns, rows, k, at)   sums of R rows, DotRow, from at on, with kDotColumns columns
//   dot_units(columns, units, sums)   the same for the listed units of one row; unless kHighFirst
//   pack_panel(product, begin, end, panel)   weight rows [begin, end), repeated to kColumns
//   tile_units<1>(panel, units, sums)   sums[0][0 .. kColumns) of the listed words of one row
// and how it multiplies a block of rows, as WordBlocks says.
#pragma once

#include "kernels/ahead.h"
#include "kernels/epilogue.h"
#include "kernels/high_steps.h"
#include "kernels/weight_rows.h"

// For a microkernel. Partial redundancy elimination of GCC 12 makes a second copy of each sum, and a loop
// that moves all of them in every step, and so does inlining it where more is done with the sums.
#if defined(__GNUC__) && !defined(__clang__)
#define KEEP_SUMS_IN_REGISTERS __attribute__((noinline, optimize("no-tree-pre")))
#else
#define KEEP_SUMS_IN_REGISTERS __attribute__((noinline))
#endif

namespace llmint8 {
namespace {

template <class Isa>
using Digit = typename Isa::Digit;

// Those that a dot product reads.
template <class Isa>
using DotColumns = WeightRows<Isa::kDotColumns>;

// Digits of a plain row, low or high, and where their sums go. first: null, or high digits, whose steps the
// first row of those that pass together has; they count 256 times, or once if there are no other digits.
template <class Digit, class Steps>
struct RowSums {
    const Digit* digits;
    int32_t* sums;
    const Digit* first;
    const Steps* steps;
};

template <class Isa>
using DotRow = RowSums<Digit<Isa>, HighSteps<Isa::kDotRows>>;

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

    static void tile(int64_t rows, const typename Isa::Panel* panel, const HighUnits* first,
                     const void* digits, int64_t words, Sums sums, Ahead& ahead) {
        if (rows == kRows) {
            Isa::template tile<kRows>(panel, first, static_cast<const Digit<Isa>*>(digits), words, sums,
                                      ahead);
        } else {
            Rows<Isa, kRows - 1>::tile(rows, panel, first, digits, words, sums, ahead);
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
    static void tile(int64_t, const typename Isa::Panel*, const HighUnits*, const void*, int64_t, Sums,
                     Ahead&) {}
    static void tile_units(int64_t, const typename Isa::Panel*, const HighUnits&, Sums) {}
};

// The base of an Isa that multiplies a block of R rows word by word, with more members:
//   tile<R>(panel, first, digits, words, sums, ahead)
//                                            sums[r][0 .. kColumns) of an interleaved block of R rows; first:
//                                            null, or listed words that count 256 times
//   tile_units<R>(panel, units, sums)        the same for the listed words alone
template <class Isa>
struct WordBlocks {
    static constexpr int kPanels = 1;             // panels that stay in the cache while all rows pass
    static constexpr int64_t kPatientBlocks = 1;  // as many give the next weights time to come from memory
    static constexpr bool kHighFirst = false;

    // Listed words of a block share the loads of the weight; a row has them for itself and waits for them.
    static DigitLayout layout(int64_t m) {
        const bool plain = m <= Isa::kFewRows;
        const double shared_cost = plain ? kNever : 1.15, own_cost = plain && Isa::kHighFirst ? kNever : 2.5;
        DigitLayout layout{
            plain ? 1 : Isa::kMaxRows, sizeof(Digit<Isa>), Isa::kUnit, kWordBytes, shared_cost, own_cost};
        layout.joins = Isa::kHighFirst || !plain;
        return layout;
    }

    // What a thread sets up for the blocks of a call. It is told where the next block's digits and the next
    // panels' weights lie, and the steps of 64 digits until then.
    struct Unit {
        void expect(const void*, int64_t, int64_t) {}
        void expect_weight(const void* from, int64_t bytes, int64_t steps) {
            weight = {from, bytes, steps * (kPadding / kWordBytes)};
        }
        void forget_panels() {}

        Ahead weight;  // a little with each word
    };

    // All sums of a block with `count` panels, `stride` elements from one to the next. first: as for a tile.
    template <class Panel, class Sums>
    static void block(Unit& unit, int64_t rows, const Panel* panels, int64_t stride, int64_t count,
                      const HighUnits* first, const void* digits, int64_t words, const Sums& sums_of) {
        for (int64_t i = 0; i < count; ++i) {
            Rows<Isa, Isa::kMaxRows>::tile(rows, panels + i * stride, first, digits, words, sums_of(i),
                                           unit.weight);
        }
    }

    // Those of words that are listed for all rows.
    template <class Panel, class Sums>
    static void block_units(Unit&, int64_t rows, const Panel* panel, const HighUnits& units, Sums sums) {
        Rows<Isa, Isa::kMaxRows>::tile_units(rows, panel, units, sums);
    }
};

// The sums of up to kRows rows of a product in one tile of columns.
template <class Isa, int kRows>
struct TileSums {
    // Those of one row, for the epilogue.
    DigitSums take(int64_t r, const RowScale& scale) const {
        const int32_t low_offset = Isa::kOffset * scale.lo_sum, high_offset = Isa::kOffset * scale.hi_sum;
        if (scale.joint) return {low[r], nullptr, low_offset + 256 * high_offset, 0};
        return {low[r], scale.has_high ? high[r] : nullptr, low_offset, high_offset};
    }

    alignas(64) int32_t low[kRows][Isa::kColumns], high[kRows][Isa::kColumns];
};

}  // namespace
}  // namespace llmint8
