// ARM's dot product (ARMv8.2 and later): sdot multiplies 16 signed bytes by 16 and sums fours into int32
// lanes. Both factors are signed, so weights need no offset.
#include "kernels/neon.h"

namespace llmint8 {
namespace {

struct DotProduct {
    using Sum = int32x4_t;
    static constexpr int kTileRows = 8;  // 24 accumulators, 3 panel registers, 2 of digits: of 32
    static constexpr int kDotRows = 4;   // 16 accumulators

    static Sum zero() { return vdupq_n_s32(0); }

    static Sum add(Sum sum, int8x16_t codes, int8x16_t digits) { return vdotq_s32(sum, codes, digits); }

    template <int kLane>
    static Sum add_lane(Sum sum, int8x16_t codes, int8x16_t digits) {
        return vdotq_laneq_s32(sum, codes, digits, kLane);
    }

    static Sum times_256(Sum sum) { return vshlq_n_s32(sum, 8); }

    static int32x4_t total(Sum sum) { return sum; }
};

}  // namespace

const KernelTable kNeonDotTable = make_table<Neon<DotProduct>>("neondot", LLMINT8_CPU_NEON_DOTPROD);

}  // namespace llmint8
