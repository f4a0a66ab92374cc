// One step of an optimizer whose state is stored in 8 bits, block by block (docs/optimizers.md).
#pragma once

#include <cstdint>

#include "kernel_table.h"

namespace llmint8 {

constexpr int64_t kOptimizerBlock = 256;  // elements that share one absmax
constexpr int kMaxStates = 3;

// What llmint8_optimizer_step was given.
struct OptimizerCall {
    int rule;
    int dtype;
    int grad_dtype;
    int64_t count;
    void* p;
    const void* g;
    void* states[kMaxStates];   // codes [count], or float32 [count] where absmax is null
    float* absmax[kMaxStates];  // [blocks]
    const float* constants;
    double* norms;  // [blocks, 2], or null
};

// Blocks [begin, end) of a call, for one instruction set.
using OptimizerBlocks = void (*)(const OptimizerCall& call, int64_t begin, int64_t end);

void optimizer_blocks_scalar(const OptimizerCall& call, int64_t begin, int64_t end);
void optimizer_blocks_avx2(const OptimizerCall& call, int64_t begin, int64_t end);
void optimizer_blocks_avx512(const OptimizerCall& call, int64_t begin, int64_t end);

// How many states a rule has; 0 for an unknown rule.
int optimizer_states(int rule);

void optimizer_step(const KernelTable& kernels, int threads, const OptimizerCall& call);

}  // namespace llmint8
