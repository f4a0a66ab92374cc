#include "dispatch.h"

namespace llmint8 {

namespace {

const KernelTable* const kTables[] = {
    &kScalarTable,
#if defined(LLMINT8_X86)
    &kAvx2Table,
    &kAvx512VnniTable,
#endif
};

}  // namespace

uint32_t cpu_features() {
    uint32_t features = 0;
#if defined(LLMINT8_X86)
    // The compiler's test includes whether the operating system saves the registers.
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) features |= LLMINT8_CPU_AVX2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni")) {
        features |= LLMINT8_CPU_AVX512_VNNI;
    }
#if defined(LLMINT8_EMULATE_AVX512)
    features |= LLMINT8_CPU_AVX512_VNNI;
#endif
#endif
    return features;
}

int table_count() {
    return static_cast<int>(sizeof(kTables) / sizeof(kTables[0]));
}

const KernelTable& table(int isa) {
    return *kTables[isa];
}

bool supported(const KernelTable& table, uint32_t features) {
    return (table.required_features & ~features) == 0;
}

}  // namespace llmint8
