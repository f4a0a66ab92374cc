// High digits of rows that pass over a weight together: which steps of 64 hold any, and those of several
// steps folded into one. Internal linkage, as in float_bits.h and for the same reason.
#pragma once

#include "quantized_rows.h"

namespace llmint8 {
namespace {

// What one product of 64 digits multiplies: each of its places takes its digits, and its codes of the weight,
// from one of some steps, a part of the fold.
template <int kRows>
struct Fold {
    struct Part {
        uint64_t places;  // a bit each
        int64_t at;       // of k: what lies at the first of all places
    };

    alignas(64) int8_t digits[kRows][kPadding];
    uint64_t taken;
    int64_t parts;
    Part part[kPadding];
};

// Of up to kRows rows of int8 digits.
template <int kRows>
struct HighSteps {
    static constexpr int64_t kMostFolds = 8;

    // nonzero(digits): the places of 64 digits that hold any, a bit each.
    template <class Nonzero>
    void set(const int8_t* const* rows, int64_t count, int64_t k, const Nonzero& nonzero) {
        folds = reads = 0;
        for (int64_t at = 0; at < k; at += 64 * kPadding) whole[at / kPadding / 64] = 0;
        for (int64_t at = 0; at < k; at += kPadding) {
            uint64_t places = 0;
            for (int64_t r = 0; r < count; ++r) places |= nonzero(rows[r] + at);
            if (places == 0) continue;
            ++reads;
            if (!fold_in(rows, count, places, at))
                whole[at / kPadding / 64] |= uint64_t{1} << at / kPadding % 64;
        }
    }

    bool meets_first;  // these rows meet a tile of the weight before others, and ask for what comes after it
    int64_t reads;     // steps that hold any
    int64_t folds;
    uint64_t whole[kMaxK / kPadding / 64];  // steps that were not folded, a bit each
    Fold<kRows> fold[kMostFolds];

  private:
    static constexpr int kMostPlaces = 16;  // of a step that may find others to share a fold

    // A step to the first fold where its places are free, or else moved along to where they are, which makes
    // loads of two lines; or to a new fold.
    bool fold_in(const int8_t* const* rows, int64_t count, uint64_t places, int64_t at) {
        if (__builtin_popcountll(places) > kMostPlaces) return false;
        for (int64_t f = 0; f < folds; ++f) {
            if ((fold[f].taken & places) == 0) return add(rows, count, fold[f], places, at);
        }
        const int first = __builtin_ctzll(places);
        const uint64_t lowest = places >> first;
        for (int64_t f = 0; f < folds; ++f) {
            uint64_t met = 0;  // moves from the lowest places to what is taken
            for (uint64_t left = lowest; left != 0; left &= left - 1)
                met |= fold[f].taken >> __builtin_ctzll(left);
            const uint64_t moves = ~met & ~uint64_t{0} >> (63 - __builtin_clzll(lowest));
            if (moves == 0) continue;
            const int move = __builtin_ctzll(moves);
            return add(rows, count, fold[f], lowest << move, at + first - move);
        }
        if (folds == kMostFolds) return false;
        Fold<kRows>& next = fold[folds++];
        next.taken = 0;
        next.parts = 0;
        for (auto& row : next.digits) {
            for (int8_t& digit : row) digit = 0;
        }
        return add(rows, count, next, places, at);
    }

    static bool add(const int8_t* const* rows, int64_t count, Fold<kRows>& fold, uint64_t places,
                    int64_t at) {
        fold.taken |= places;
        fold.part[fold.parts++] = {places, at};
        for (; places != 0; places &= places - 1) {
            const int place = __builtin_ctzll(places);
            for (int64_t r = 0; r < kRows && r < count; ++r) fold.digits[r][place] = rows[r][at + place];
        }
        return true;
    }
};

}  // namespace
}  // namespace llmint8
