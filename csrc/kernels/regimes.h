// The two regimes of the int8 product, written once; an instruction set plugs in its microkernels.
//
// Few rows: weights are read once, straight from the row-major matrix, as dot products along k.
// Many rows: a tile of weight rows becomes a panel [word along k][column][digits of a word] in a scratch that
// fits L2, and small tiles of sums stay in registers while one word of a row is broadcast at a time. An
// outlier costs one more product, because its word in the panel is found by index.
//
// Internal linkage, as in float_bits.h and for the same reason.
#pragma once

#include "kernels/few_rows.h"

namespace llmint8 {
namespace {

// One block of rows times `count` panels.
template <class Isa>
void block_sums(typename Isa::Unit& unit, const QuantizedRows& rows, int64_t b,
                const typename Isa::Panel* panels, int64_t stride, int64_t count,
                TileSums<Isa, Isa::kMaxRows>* sums) {
    constexpr int64_t kWord = kWordBytes / static_cast<int64_t>(sizeof(Digit<Isa>));
    const int64_t words = (rows.k() + kWord - 1) / kWord;
    const Block& block = rows.block(b);
    const auto low = [&](int64_t i) { return sums[i].low; };
    const auto high = [&](int64_t i) { return sums[i].high; };
    const bool joint = rows.row(block.begin).scale.joint, shared = block.high == High::kShared;
    const HighUnits* first = joint && shared ? &block.units : nullptr;
    Isa::block(unit, block.rows, panels, stride, count, first, block.lo, words, low);
    if (block.high == High::kWhole) {
        Isa::block(unit, block.rows, panels, stride, count, nullptr, block.units.digits, words, high);
    }
    for (int64_t i = 0; i < count; ++i) {
        const typename Isa::Panel* panel = panels + i * stride;
        if (shared && !joint) Isa::block_units(unit, block.rows, panel, block.units, high(i));
        for (int64_t r = 0; block.high == High::kOwn && r < block.rows; ++r) {
            const Row& row = rows.row(block.begin + r);
            if (!row.scale.has_high) continue;
            Isa::template tile_units<1>(panel, row.units, high(i) + r);
            for (int64_t c = 0; joint && c < Isa::kColumns; ++c) low(i)[r][c] += 256 * high(i)[r][c];
        }
    }
}

// Outputs of rows from `first` on, of both products of a call.
template <class Isa, class Sums>
void finish_rows(const LinearCall& call, const ColumnScales<Isa::kColumns>& columns, int64_t begin,
                 int64_t end, int64_t first, int64_t count, const Sums& codes, const Sums& second) {
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
    FewRows<Isa> codes(call.codes()), second(call.second_digits());
    for (int64_t n = begin; n < end; n += Isa::kColumns) {
        const int64_t last = n + Isa::kColumns < end ? n + Isa::kColumns : end;
        expect_second_digits(call, last, last + Isa::kColumns);
        codes.multiply(n, last);
        if (call.p > 0) second.multiply(n, last);
        const ColumnScales<Isa::kColumns> columns(call, n, last);
        finish_rows<Isa>(call, columns, n, last, 0, call.rows->m(), codes.sums, second.sums);
    }
}

// Elements of a panel of a weight that is multiplied with these rows.
template <class Isa>
int64_t panel_size(const QuantizedRows& rows) {
    return rows.padded_k() * Isa::kColumns;
}

// Elements of a panel of the codes with one of the second digits.
template <class Isa>
int64_t panels_size(const LinearCall& call) {
    return panel_size<Isa>(*call.rows) + (call.p > 0 ? panel_size<Isa>(*call.outlier_rows) : 0);
}

// Bytes of panels that leave room in the second-level cache for the rows that pass.
constexpr int64_t kPanelBytes = 1 << 20;

// Panels that many rows meet together. More of them save nothing unless they outnumber the blocks.
template <class Isa>
int64_t panels_at_once(const LinearCall& call) {
    const int64_t fit =
        kPanelBytes / (panels_size<Isa>(call) * static_cast<int64_t>(sizeof(typename Isa::Panel)));
    const int64_t most = Isa::kPanels < fit ? Isa::kPanels : fit, blocks = call.rows->blocks();
    return most < 1 ? 1 : most < blocks ? most : blocks;
}

// All blocks of many rows, against up to kPanels panels of the codes and as many of the second digits.
// Columns [end, next) come after these.
template <class Isa>
void many_rows(const LinearCall& call, int64_t begin, int64_t end, int64_t next, typename Isa::Panel* panels,
               typename Isa::Unit& unit) {
    const QuantizedRows& rows = *call.rows;
    const int64_t size = panels_size<Isa>(call), first_size = panel_size<Isa>(rows);
    ColumnScales<Isa::kColumns> columns[Isa::kPanels];
    const auto last = [&](int64_t n) { return n + Isa::kColumns < end ? n + Isa::kColumns : end; };
    int64_t count = 0;
    for (int64_t n = begin; n < end; n += Isa::kColumns, ++count) {
        Isa::pack_panel(call.codes(), n, last(n), panels + count * size);
        if (call.p > 0) Isa::pack_panel(call.second_digits(), n, last(n), panels + count * size + first_size);
        columns[count].set(call, n, last(n));
    }
    unit.forget_panels();
    expect_second_digits(call, end, next);
    const int64_t steps = count * rows.padded_k() / kPadding;
    if (rows.blocks() >= Isa::kPatientBlocks) {
        unit.expect_weight(call.weight + end * rows.k(), (next - end) * rows.k(), steps * rows.blocks());
    }
    TileSums<Isa, Isa::kMaxRows> codes[Isa::kPanels], second[Isa::kPanels];
    for (int64_t b = 0; b < rows.blocks(); ++b) {
        const Block& block = rows.block(b);
        if (b + 1 < rows.blocks()) {
            const Block& after = rows.block(b + 1);
            const int64_t digits = after.rows * rows.padded_k() * static_cast<int64_t>(sizeof(Digit<Isa>));
            unit.expect(after.lo, after.high == High::kWhole ? 2 * digits : digits, steps);
        }
        block_sums<Isa>(unit, rows, b, panels, size, count, codes);
        if (call.p > 0)
            block_sums<Isa>(unit, *call.outlier_rows, b, panels + first_size, size, count, second);
        for (int64_t n = begin, i = 0; n < end; n += Isa::kColumns, ++i) {
            finish_rows<Isa>(call, columns[i], n, last(n), block.begin, block.rows, codes[i], second[i]);
        }
    }
}

template <class Isa>
int64_t scratch_bytes(const LinearCall& call) {
    if (call.rows->m() <= Isa::kFewRows) return 0;
    return panels_at_once<Isa>(call) * panels_size<Isa>(call) *
           static_cast<int64_t>(sizeof(typename Isa::Panel));
}

template <class Isa>
void linear_columns(const LinearCall& call, int64_t begin, int64_t end, void* scratch) {
    if (call.rows->m() <= Isa::kFewRows) return few_rows<Isa>(call, begin, end);
    typename Isa::Unit unit;
    const int64_t step = Isa::kColumns * panels_at_once<Isa>(call);
    const auto bounded = [&](int64_t n) { return n < end ? n : end; };
    for (int64_t n = begin; n < end; n += step) {
        many_rows<Isa>(call, n, bounded(n + step), bounded(n + 2 * step),
                       static_cast<typename Isa::Panel*>(scratch), unit);
    }
}

template <class Isa>
constexpr KernelTable make_table(const char* name, uint32_t required_features) {
    return {name,         required_features,  Isa::kColumns, Isa::layout, scratch_bytes<Isa>,
            quantize_row, linear_columns<Isa>};
}

}  // namespace
}  // namespace llmint8
