#include "key_ranges.h"

#include <cstddef>

namespace llmint8 {

std::vector<std::vector<KeyRange>> key_ranges(const uint8_t* mask, int64_t batch, int64_t keys) {
    std::vector<std::vector<KeyRange>> ranges(static_cast<size_t>(batch));
    for (std::vector<KeyRange>& of_sequence : ranges) {
        if (mask == nullptr) {
            of_sequence.push_back({0, keys});
            continue;
        }
        for (int64_t i = 0; i < keys; ++i) {
            if (mask[i] == 0) continue;
            if (i == 0 || mask[i - 1] == 0) of_sequence.push_back({i, i});
            of_sequence.back().end = i + 1;
        }
        mask += keys;
    }
    return ranges;
}

}  // namespace llmint8
