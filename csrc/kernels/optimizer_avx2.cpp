// The blocks of an optimizer step with AVX2.
#include "kernels/optimizer_blocks.h"

namespace llmint8 {

void optimizer_blocks_avx2(const OptimizerCall& call, int64_t begin, int64_t end) {
    run(call, begin, end);
}

}  // namespace llmint8
