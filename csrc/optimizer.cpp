#include "optimizer.h"

#include "optimizer_book.h"
#include "parallel.h"

namespace llmint8 {

namespace {

constexpr int64_t kGrain = 16;  // blocks: 4,096 weights, below which a thread costs more than it saves

struct Choice {
    uint32_t required_features;
    OptimizerBlocks blocks;
};

// Slowest first. On ARM the portable loops are compiled to NEON, which every such CPU has.
constexpr Choice kChoices[] = {
    {0, optimizer_blocks_scalar},
#if defined(LLMINT8_X86)
    {LLMINT8_CPU_AVX2, optimizer_blocks_avx2},
    {LLMINT8_CPU_AVXVNNI, optimizer_blocks_avx2},
    {LLMINT8_CPU_AVX512_VNNI, optimizer_blocks_avx512},
#endif
};

}  // namespace

int optimizer_states(int rule) {
    switch (rule) {
        case LLMINT8_RULE_LION:
        case LLMINT8_RULE_MOMENTUM:
        case LLMINT8_RULE_RMSPROP:
        case LLMINT8_RULE_ADAGRAD:
            return 1;
        case LLMINT8_RULE_ADAM:
        case LLMINT8_RULE_RMSPROP_MOMENTUM:
            return 2;
        case LLMINT8_RULE_ADEMAMIX:
            return 3;
        default:
            return 0;
    }
}

void optimizer_step(const KernelTable& kernels, int threads, const OptimizerCall& call) {
    OptimizerBlocks blocks = optimizer_blocks_scalar;
    for (const Choice& choice : kChoices) {
        if ((choice.required_features & ~kernels.required_features) == 0) blocks = choice.blocks;
    }
    code_book(true), code_book(false);  // built here, not by several threads that wait for one another
    const int64_t count = (call.count + kOptimizerBlock - 1) / kOptimizerBlock;
    parallel_for(count, kGrain, threads, [&](int64_t begin, int64_t end, int) { blocks(call, begin, end); });
}

}  // namespace llmint8
