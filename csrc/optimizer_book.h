// The dynamic tree code book of 8-bit optimizer states (arXiv 2110.02861, section 1.3), and a table that
// finds the nearest code without a search.
#pragma once

#include <cstdint>

namespace llmint8 {

// A magnitude's upper 16 bits name its cell: the exponent and 7 bits of the mantissa. Cells are so narrow
// that each holds at most one of the midpoints between neighbouring magnitudes. Below 2^-23 all is nearest to
// zero.
constexpr int32_t kBelowFirstCell = 0x33ff;
constexpr int32_t kLastCell = 0x3f80;  // from 1 on
constexpr int32_t kCells = kLastCell - kBelowFirstCell + 1;

struct CodeBook {
    float values[256];      // ascending
    int32_t zero;           // the code of 0; that of the k-th magnitude is zero + k, or zero - k below zero
    int32_t most_negative;  // the largest k below zero
    // Per cell: k of its lowest magnitude in the upper 16 bits; in the lower 16 what makes the lower 16 bits
    // of a magnitude beyond the cell's midpoint carry into k.
    uint32_t cells[kCells];
};

// Built at the first call.
const CodeBook& code_book(bool is_signed);

}  // namespace llmint8
