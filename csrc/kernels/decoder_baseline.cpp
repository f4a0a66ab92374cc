// Float kernels for the vectors that every CPU of the architecture has (SSE2, NEON).
#define LLMINT8_VECTOR_BYTES 16
#include "kernels/decoder_table.h"

namespace llmint8 {

const DecoderKernels kBaselineDecoderKernels = kDecoderKernels;

}  // namespace llmint8
