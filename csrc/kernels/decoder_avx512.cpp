// Float kernels for AVX-512.
#define LLMINT8_VECTOR_BYTES 64
#include "kernels/decoder_table.h"

namespace llmint8 {

const DecoderKernels kAvx512DecoderKernels = kDecoderKernels;

}  // namespace llmint8
