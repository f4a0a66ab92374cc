// The gradient of the input for the vectors that every CPU of the architecture has (SSE2, NEON).
#define LLMINT8_VECTOR_BYTES 16
#include "kernels/gradient_tile.h"

namespace llmint8 {

const GradientKernels kBaselineGradient = kGradientKernels;

}  // namespace llmint8
