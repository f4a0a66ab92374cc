#include "gradient.h"

#include <algorithm>

#include "parallel.h"

namespace llmint8 {

namespace {

// Rows whose scaled gradients and sums stay in the second-level cache while the weight is read once for them.
constexpr int64_t kChunkRows = 240;

// Below this many multiplications, waking threads costs more than they save.
constexpr int64_t kWorkPerThread = 1 << 17;

const GradientKernels& gradient_kernels([[maybe_unused]] const KernelTable& table) {
#if defined(LLMINT8_X86)
    if (table.required_features & LLMINT8_CPU_AVX512_VNNI) return kAvx512Gradient;
    if (table.required_features & (LLMINT8_CPU_AVX2 | LLMINT8_CPU_AVXVNNI)) return kAvx2Gradient;
#endif
    return kBaselineGradient;
}

int64_t grain(int64_t unit, int64_t work) {
    return unit * std::max<int64_t>(1, kWorkPerThread / std::max<int64_t>(1, work * unit));
}

}  // namespace

void input_gradient(const KernelTable& table, int threads, const GradientCall& call) {
    const GradientKernels& kernels = gradient_kernels(table);
    const int64_t chunk = std::min(call.m, kChunkRows), tile = kernels.tile_rows;
    const int64_t row_grain = grain(tile, call.n), column_grain = grain(kGradientColumns, call.n * chunk);
    const int team =
        std::max(thread_count(chunk, row_grain, threads), thread_count(call.k, column_grain, threads));
    const int64_t scratch = kernels.scratch_bytes(call, chunk);
    const Buffer memory = allocate(scratch * team);
    const Buffer values = allocate(chunk * call.n * static_cast<int64_t>(sizeof(float)));
    const Buffer scales = allocate(call.n * static_cast<int64_t>(sizeof(float)));
    float *scaled = reinterpret_cast<float*>(values.get()), *scale = reinterpret_cast<float*>(scales.get());
    for (int64_t i = 0; i < call.n; ++i) scale[i] = call.absmax[i] / 127.0f;
    for (int64_t first = 0; first < call.m; first += chunk) {
        const ScaledRows rows{first, std::min(chunk, call.m - first), scaled};
        parallel_for(rows.count, row_grain, threads, [&](int64_t begin, int64_t end, int thread) {
            for (int64_t r = begin; r < end; r += tile) {
                kernels.scale_rows(call, scale, first + r, first + std::min(end, r + tile),
                                   memory.get() + thread * scratch, scaled + r * call.n);
            }
        });
        parallel_for(call.k, column_grain, threads, [&](int64_t begin, int64_t end, int thread) {
            for (int64_t k = begin; k < end; k += kGradientColumns) {
                kernels.columns(call, rows, k, std::min(end, k + kGradientColumns),
                                memory.get() + thread * scratch);
            }
        });
    }
}

}  // namespace llmint8
