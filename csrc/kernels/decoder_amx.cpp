// Float kernels for AVX-512, with attention on AMX.
#define LLMINT8_VECTOR_BYTES 64
#include "kernels/decoder_table.h"
#include "kernels/tile_attention.h"

namespace llmint8 {
namespace {

constexpr DecoderKernels with_tiles() {
    DecoderKernels kernels = kDecoderKernels;
    kernels.attention_bytes = tile_attention_bytes;
    kernels.attend = tile_attend;
    return kernels;
}

}  // namespace

const DecoderKernels kAmxDecoderKernels = with_tiles();

}  // namespace llmint8
