// Weights of attention from its scores. Internal linkage, as in float_bits.h and for the same reason.
#pragma once

#include "kernels/float_math.h"
#include "kernels/lanes.h"

namespace llmint8 {
namespace {

// exp(x), rounded to the element type, of x that is not positive.
template <class Element>
struct Weight {
    static float of(float x) { return rounded<Element>(exponential(x)); }
};

// Specks count as zero; that is e^-87 and all below. A NaN has room for the rounding: it is not all ones.
template <>
struct Weight<Bfloat16> {
    static float of(float x) {
        const uint32_t bits = to_bits(exponential_within(x < kExpLowest ? kExpLowest : x));
        const float value = from_bits((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u);
        return value < kSpeck ? 0.0f : value;
    }
};

inline void store_weight(float weight, float* to) {
    *to = weight;
}

inline void store_weight(float weight, uint16_t* to) {  // of a bfloat16
    *to = static_cast<uint16_t>(to_bits(weight) >> 16);
}

// Scores x[0, count) of one query, of which those in [begin, end) are of keys that it sees, to weights, not
// yet divided by their sum; zeros for the others. Count is a multiple of 16, scaling positive; to may be x.
// Returns the sum's inverse, 0 if no key is seen.
template <class Element, class Storage>
LLMINT8_NOINLINE float softmax(float* x, int64_t count, int64_t begin, int64_t end, float scaling,
                               Storage* to) {
    const int64_t first = begin / kLanes * kLanes, last = (end + kLanes - 1) / kLanes * kLanes;
    if (begin == end) {
        std::memset(to, 0, static_cast<size_t>(count) * sizeof(Storage));
        return 0.0f;
    }
    const float lowest = -__builtin_inff();
    for (int64_t i = first; i < begin; ++i) x[i] = lowest;
    for (int64_t i = end; i < last; ++i) x[i] = lowest;
    Lanes most, sums = {};
    float lanes[kLanes], largest = lowest;
    for (float& lane : lanes) lane = lowest;
    most.load(lanes);
    for (int64_t i = first; i < last; i += kLanes) most.raise(x + i);
    most.store(lanes);
    for (const float lane : lanes) largest = lane > largest ? lane : largest;
    largest *= scaling;  // what the largest of the products is: rounding keeps their order
    for (int64_t i = first; i < last; i += kLanes) {
        alignas(64) float weights[kLanes];
        for (int c = 0; c < kLanes; ++c) weights[c] = Weight<Element>::of(x[i + c] * scaling - largest);
        sums.add(weights);
        for (int c = 0; c < kLanes; ++c) store_weight(weights[c], to + i + c);
    }
    std::memset(to, 0, static_cast<size_t>(first) * sizeof(Storage));
    std::memset(to + last, 0, static_cast<size_t>(count - last) * sizeof(Storage));
    return 1.0f / sum_lanes(sums);
}

}  // namespace
}  // namespace llmint8
