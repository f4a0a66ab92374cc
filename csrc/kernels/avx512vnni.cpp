#include "kernels/avx512vnni.h"

namespace llmint8 {

const KernelTable kAvx512VnniTable = make_table<Avx512Vnni>("avx512vnni", LLMINT8_CPU_AVX512_VNNI);

}  // namespace llmint8
