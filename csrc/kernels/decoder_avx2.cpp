// Float kernels for AVX2 and its extensions.
#define LLMINT8_VECTOR_BYTES 32
#include "kernels/decoder_table.h"

namespace llmint8 {

const DecoderKernels kAvx2DecoderKernels = kDecoderKernels;

}  // namespace llmint8
