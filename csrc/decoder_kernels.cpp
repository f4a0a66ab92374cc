#include "decoder_kernels.h"

namespace llmint8 {

const DecoderKernels& decoder_kernels([[maybe_unused]] const KernelTable& table) {
#if defined(LLMINT8_AMX)
    if (table.required_features & LLMINT8_CPU_AMX) return kAmxDecoderKernels;
#endif
#if defined(LLMINT8_X86)
    if (table.required_features & LLMINT8_CPU_AVX512_VNNI) return kAvx512DecoderKernels;
    if (table.required_features & (LLMINT8_CPU_AVX2 | LLMINT8_CPU_AVXVNNI)) return kAvx2DecoderKernels;
#endif
    return kBaselineDecoderKernels;
}

}  // namespace llmint8
