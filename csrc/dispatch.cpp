#include "dispatch.h"

#if defined(LLMINT8_X86)
#include <cpuid.h>
#if defined(LLMINT8_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(LLMINT8_ARM64) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(LLMINT8_ARM64) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace llmint8 {

namespace {

const KernelTable* const kTables[] = {
    &kScalarTable,
#if defined(LLMINT8_X86)
    &kAvx2Table,
#if defined(LLMINT8_AVXVNNI)
    &kAvxVnniTable,
#endif
    &kAvx512VnniTable,
#if defined(LLMINT8_AMX)
    &kAmxTable,
#endif
#elif defined(LLMINT8_ARM64)
    &kNeonTable,
    &kNeonDotTable,
#endif
};

#if defined(LLMINT8_AMX)
// Its registers are large: Linux saves them only for a process that has asked (arch_prctl(2)).
bool has_amx() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    constexpr unsigned kBfloat16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25,
                       kAll = kBfloat16 | kTile | kInt8;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & kAll) != kAll) return false;  // leaf 7
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

#if defined(LLMINT8_X86)
uint32_t x86_features() {
    uint32_t features = 0;
    // The compiler's test includes whether the operating system saves the registers.
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        features |= LLMINT8_CPU_AVX2;
        // Older compilers have no name for AVX-VNNI: CPUID leaf 7, subleaf 1, EAX bit 4.
        unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
        if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1)) {
            features |= LLMINT8_CPU_AVXVNNI;
        }
    }
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni")) {
        features |= LLMINT8_CPU_AVX512_VNNI;
#if defined(LLMINT8_AMX)
        if (has_amx()) features |= LLMINT8_CPU_AMX;
#endif
    }
#if defined(LLMINT8_EMULATE_AVX512)
    features |= LLMINT8_CPU_AVX512_VNNI;
#endif
#if defined(LLMINT8_EMULATE_AVXVNNI)
    features |= LLMINT8_CPU_AVXVNNI;
#endif
#if defined(LLMINT8_EMULATE_AMX)
    features |= LLMINT8_CPU_AMX;
#endif
    return features;
}
#elif defined(LLMINT8_ARM64)
bool has_dotprod() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
    int has = 0;
    size_t size = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0;
#else
    return false;
#endif
}
#endif

}  // namespace

uint32_t cpu_features() {
#if defined(LLMINT8_X86)
    static const uint32_t features = x86_features();  // CPUID takes microseconds on a virtual machine
    return features;
#elif defined(LLMINT8_ARM64)
    static const uint32_t features =
        LLMINT8_CPU_NEON | (has_dotprod() ? LLMINT8_CPU_NEON_DOTPROD : 0);  // every such CPU has NEON
    return features;
#else
    return 0;
#endif
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
