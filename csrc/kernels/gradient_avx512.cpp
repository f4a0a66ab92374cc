// The gradient of the input for AVX-512.
#define LLMINT8_VECTOR_BYTES 64
#include "kernels/gradient_tile.h"

namespace llmint8 {

const GradientKernels kAvx512Gradient = kGradientKernels;

}  // namespace llmint8
