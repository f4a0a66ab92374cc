// Memory that is fetched while something else is computed. Internal linkage, as in float_bits.h and for the
// same reason.
#pragma once

#include "quantized_rows.h"

namespace llmint8 {
namespace {

// Memory that will be read soon, to be fetched into the second-level cache a little with each step of a
// product.
class Ahead {
  public:
    Ahead() = default;
    // steps: after as many it should be there.
    Ahead(const void* from, int64_t bytes, int64_t steps)
        : at_(static_cast<const char*>(from)), end_(at_ + bytes), lines_((bytes / 64 + steps - 1) / steps) {}

    LLMINT8_INLINE void step() {
        for (int64_t i = 0; i < lines_ && at_ < end_; ++i, at_ += 64) __builtin_prefetch(at_, 0, 2);
    }

  private:
    const char* at_ = nullptr;
    const char* end_ = nullptr;
    int64_t lines_ = 0;
};

}  // namespace
}  // namespace llmint8
