// The table of decoder kernels for the vector width that the including file has chosen.
#pragma once

#include "kernels/decoder_attention.h"
#include "kernels/float_linear.h"

namespace llmint8 {
namespace {

constexpr DecoderKernels kDecoderKernels = {rms_norm,
                                            rotate,
                                            add,
                                            gate,
                                            widen_rows,
                                            attention_bytes,
                                            attend,
                                            kFloatColumns,
                                            float_linear_bytes,
                                            float_linear_columns,
                                            fourbit_elements};

}  // namespace
}  // namespace llmint8
