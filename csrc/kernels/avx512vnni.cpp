#include "kernels/rows_in_lanes.h"

namespace llmint8 {
namespace {

DigitLayout layout(int64_t m) {
    return lie_in_lanes(m) ? lanes_layout() : Avx512Vnni::layout(m);
}

int64_t panel_bytes(const LinearCall& call) {
    return lie_in_lanes(call.rows->m()) ? 0 : scratch_bytes<Avx512Vnni>(call);
}

void columns(const LinearCall& call, int64_t begin, int64_t end, void* scratch) {
    if (lie_in_lanes(call.rows->m())) {
        rows_in_lanes(call, begin, end);
    } else {
        linear_columns<Avx512Vnni>(call, begin, end, scratch);
    }
}

}  // namespace

const KernelTable kAvx512VnniTable = {
    "avx512vnni", LLMINT8_CPU_AVX512_VNNI, Avx512Vnni::kColumns, layout, panel_bytes, quantize_row, columns};

}  // namespace llmint8
