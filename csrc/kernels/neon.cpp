// Advanced SIMD as every 64-bit ARM CPU has it: products of bytes in int16 lanes, summed in pairs into int32
// lanes at once. Two products in one int16 lane could overflow, hence no smlal.
#include "kernels/neon.h"

namespace llmint8 {
namespace {

struct PairwiseSums {
    struct Sum {
        int32x4_t left, right;  // two lanes for each of the first two, and of the last two, columns
    };
    static constexpr int kTileRows = 4;  // 24 accumulators, 3 panel registers, 1 of digits, 2 products: of 32
    static constexpr int kDotRows = 2;   // 16 accumulators

    static Sum zero() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }

    static Sum add(Sum sum, int8x16_t codes, int8x16_t digits) {
        return {vpadalq_s16(sum.left, vmull_s8(vget_low_s8(codes), vget_low_s8(digits))),
                vpadalq_s16(sum.right, vmull_high_s8(codes, digits))};
    }

    template <int kLane>
    static Sum add_lane(Sum sum, int8x16_t codes, int8x16_t digits) {
        return add(sum, codes, vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(digits), kLane)));
    }

    static Sum times_256(Sum sum) { return {vshlq_n_s32(sum.left, 8), vshlq_n_s32(sum.right, 8)}; }

    static int32x4_t total(Sum sum) { return vpaddq_s32(sum.left, sum.right); }
};

}  // namespace

const KernelTable kNeonTable = make_table<Neon<PairwiseSums>>("neon", LLMINT8_CPU_NEON);

}  // namespace llmint8
