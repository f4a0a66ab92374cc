// Which keys a mask allows, as ranges: what attention loops over.
#pragma once

#include <cstdint>
#include <vector>

namespace llmint8 {

// Consecutive keys that may be attended to.
struct KeyRange {
    int64_t begin, end;
};

// For each sequence the ranges of its row of mask [batch, keys] that are not 0, ascending and apart from one
// another; without a mask all keys.
std::vector<std::vector<KeyRange>> key_ranges(const uint8_t* mask, int64_t batch, int64_t keys);

}  // namespace llmint8
