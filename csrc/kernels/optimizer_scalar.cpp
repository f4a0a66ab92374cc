// The blocks of an optimizer step for any CPU; on ARM the compiler makes them NEON.
#include "kernels/optimizer_blocks.h"

namespace llmint8 {

void optimizer_blocks_scalar(const OptimizerCall& call, int64_t begin, int64_t end) {
    run(call, begin, end);
}

}  // namespace llmint8
