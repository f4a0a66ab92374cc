// A whole decoder: its layers, its norms and its head, on many tokens at once.
#pragma once

#include "kernel_table.h"
#include "llmint8_decoder.h"

namespace llmint8 {

// Throws std::bad_alloc. Sizes and pointers are the caller's to check.
void decode(const KernelTable& kernels, int threads, const llmint8_decoder& decoder,
            const llmint8_decoder_tokens& tokens);

}  // namespace llmint8
