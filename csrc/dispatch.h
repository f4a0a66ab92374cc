// Which instruction set runs: data, chosen once by the caller, never inside a kernel.
#pragma once

#include <cstdint>

#include "kernel_table.h"

namespace llmint8 {

// LLMINT8_CPU_* bits of this machine.
uint32_t cpu_features();

// The tables this library was built with, slowest first.
int table_count();
const KernelTable& table(int isa);

bool supported(const KernelTable& table, uint32_t features);

}  // namespace llmint8
