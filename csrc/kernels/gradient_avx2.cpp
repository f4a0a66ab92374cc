// The gradient of the input for AVX2 and its extensions.
#define LLMINT8_VECTOR_BYTES 32
#include "kernels/gradient_tile.h"

namespace llmint8 {

const GradientKernels kAvx2Gradient = kGradientKernels;

}  // namespace llmint8
