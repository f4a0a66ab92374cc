// High digits of rows that pass over a weight together: which steps of 64 hold any, and those of several
// steps folded into one. Internal linkage, as in float_bits.h and for the same reason.
#pragma once

#include "quantized_rows.h"

namespace llmint8 {
namespace {

// Steps whose digits lie at different places of the 64, so that one product multiplies them all: each place
// takes its digits, and its codes of the weight, from one of the steps.
template <int kRows>
struct FoldedSteps {
    struct Part {
        uint64_t places;  // a bit each
        int64_t at;       // of k: where the step begins
    };

    uint64_t taken;
    int64_t parts;
    Part part[kPadding];
    alignas(64) int8_t digits[kRows][kPadding];
};

// Of up to kRows rows of int8 digits.
template <int kRows>
struct HighSteps {
    static constexpr int kWords = kMaxK / kPadding / 64;
    static constexpr int64_t kMostFolds = 8;

    // nonzero(digits): the places of 64 digits that hold any, a bit each.
    template <class Nonzero>
    void set(const int8_t* const* rows, int64_t count, int64_t k, const Nonzero& nonzero) {
        folds = reads = 0;
        for (uint64_t& word : whole) word = 0;
        for (int64_t at = 0; at < k; at += kPadding) {
            uint64_t places = 0;
            for (int64_t r = 0; r < count; ++r) places |= nonzero(rows[r] + at);
            if (places == 0) continue;
            ++reads;
            FoldedSteps<kRows>* const into = fold_for(places);
            if (into == nullptr) {
                whole[at / kPadding / 64] |= uint64_t{1} << at / kPadding % 64;
                continue;
            }
            into->taken |= places;
            into->part[into->parts++] = {places, at};
            for (uint64_t left = places; left != 0; left &= left - 1) {
                const int place = __builtin_ctzll(left);
                for (int64_t r = 0; r < kRows && r < count; ++r) into->digits[r][place] = rows[r][at + place];
            }
        }
    }

    bool meets_first;  // these rows meet a tile of the weight before others, and ask for what comes after it
    int64_t reads;     // steps that hold any
    int64_t folds;
    FoldedSteps<kRows> fold[kMostFolds];
    uint64_t whole[kWords];  // steps that were not folded, a bit each

  private:
    static constexpr int kMostPlaces = 16;  // of a step that may find others to share a fold

    FoldedSteps<kRows>* fold_for(uint64_t places) {
        if (__builtin_popcountll(places) > kMostPlaces) return nullptr;
        for (int64_t i = 0; i < folds; ++i) {
            if ((fold[i].taken & places) == 0) return &fold[i];
        }
        if (folds == kMostFolds) return nullptr;
        FoldedSteps<kRows>& next = fold[folds++];
        next.taken = 0;
        next.parts = 0;
        for (auto& row : next.digits) {
            for (int8_t& digit : row) digit = 0;
        }
        return &next;
    }
};

}  // namespace
}  // namespace llmint8
