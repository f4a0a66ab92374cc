// Few rows of a product: in which order their digits pass over each tile of the weight. Internal linkage, as
// in float_bits.h and for the same reason.
#pragma once

#include "kernels/isa.h"

namespace llmint8 {
namespace {

// Of a product, if there is one.
template <class Isa>
class FewRows {
  public:
    explicit FewRows(const Product& product) : product_(product) {
        if (product.rows == nullptr) return;
        const QuantizedRows& rows = *product.rows;
        // Whether high digits pass beside the low ones: so few of them read the weight once.
        const bool beside = !Isa::kHighFirst || 2 * rows.m() <= Isa::kDotRows;
        const auto lo = [&](int64_t row) { return digits(rows.block(row).lo); };
        const auto hi = [&](int64_t row) { return digits(rows.block(row).units.digits); };
        for (int64_t row = 0; row < rows.m(); ++row) {
            if (is_joint(row) && !beside) pass_[passes_++] = {lo(row), sums.low[row], hi(row), nullptr};
        }
        ends_[0] = passes_;
        for (int64_t row = 0; row < rows.m(); ++row) {
            if (!is_joint(row) || beside) pass_[passes_++] = {lo(row), sums.low[row], nullptr, nullptr};
            if (is_whole(row) && beside) pass_[passes_++] = {hi(row), sums.high[row], nullptr, nullptr};
        }
        ends_[1] = passes_;
        for (int64_t row = 0; !beside && row < rows.m(); ++row) {
            if (is_whole(row) && !is_joint(row))
                pass_[passes_++] = {nullptr, sums.high[row], hi(row), nullptr};
        }
        ends_[2] = passes_;
        int64_t sets = 0, reads = 0, reads_again = 0;
        for_each_pass([&](int64_t p, int64_t count) {
            if (pass_[p].digits != nullptr) ++reads;
            if constexpr (Isa::kHighFirst) {
                if (pass_[p].first == nullptr) return;
                const Digit<Isa>* first[Isa::kDotRows];
                for (int64_t i = 0; i < count; ++i) first[i] = pass_[p + i].first;
                steps_[sets].set(first, count, rows.k(), Isa::nonzero);
                steps_[sets].meets_first = p == 0;
                reads_again += steps_[sets].reads;
                pass_[p].steps = &steps_[sets++];
            }
        });
        is_alone_ = reads == 1 && 2 * reads_again * kPadding <= rows.padded_k();
    }

    // Sums of all rows with one tile of columns.
    void multiply(int64_t begin, int64_t end) {
        const QuantizedRows& rows = *product_.rows;
        for (int64_t n = begin; n < begin + Isa::kColumns; n += Isa::kDotColumns) {
            DotColumns<Isa> w(product_, n, end);
            const int64_t at = n - begin;
            w.ask_often(is_alone_);
            for_each_pass([&](int64_t p, int64_t count) {
                Rows<Isa, Isa::kDotRows>::dot(count, w, pass_ + p, rows.k(), at);
                w.ask_often(false);
            });
            if constexpr (Isa::kHighFirst) {
                for (int64_t row = 0; ends_[0] == 0 && row < rows.m(); ++row) {  // those that passed beside
                    for (int64_t c = at; is_joint(row) && c < at + Isa::kDotColumns; ++c)
                        sums.low[row][c] += 256 * sums.high[row][c];
                }
            } else {
                for (int64_t row = 0; row < rows.m(); ++row) {
                    if (rows.block(row).high == High::kOwn)
                        Isa::dot_units(w, rows.row(row).units, &sums.high[row][at]);
                }
            }
        }
    }

    TileSums<Isa, Isa::kFewRows> sums;

  private:
    bool is_whole(int64_t row) const { return product_.rows->block(row).high == High::kWhole; }
    bool is_joint(int64_t row) const { return is_whole(row) && product_.rows->row(row).scale.joint; }

    // visit(first, count): of those that pass together.
    template <class Visit>
    void for_each_pass(const Visit& visit) const {
        int64_t p = 0;
        for (const int64_t group_end : ends_) {
            for (int64_t last = 0; p < group_end; p = last) {
                last = p + Isa::kDotRows < group_end ? p + Isa::kDotRows : group_end;
                visit(p, last - p);
            }
        }
    }

    static const Digit<Isa>* digits(const void* from) { return static_cast<const Digit<Isa>*>(from); }

    const Product product_;
    // Joint rows with both digits, low digits of the others, with or without their high ones, and the rest.
    DotRow<Isa> pass_[2 * Isa::kFewRows];
    int64_t passes_ = 0, ends_[3] = {};
    bool is_alone_ = false;  // one pass reads the weight, and high digits little of it again
    HighSteps<Isa::kDotRows> steps_[Isa::kHighFirst ? Isa::kFewRows / Isa::kDotRows + 1 : 1];
};

}  // namespace
}  // namespace llmint8
