#include "decoder_projections.h"

#include <algorithm>

#include "decoder_kernels.h"
#include "float_columns.h"
#include "linear_driver.h"
#include "parallel.h"

namespace llmint8 {

namespace {

// Fewer elements are not worth a thread.
constexpr int64_t kElementsPerThread = 1 << 16;

void float_linear(const KernelTable& kernels, int threads, int dtype, const Projection& projection, int64_t m,
                  const void* x) {
    const DecoderKernels& floats = decoder_kernels(kernels);
    const llmint8_decoder_linear& layer = projection.layer;
    const int64_t k = layer.k, padded = pad_floats(k);
    const int64_t row_bytes = k * (dtype == LLMINT8_FLOAT32 ? 4 : 2);
    const Buffer wide = allocate(m * padded * static_cast<int64_t>(sizeof(float)));
    float* const rows = reinterpret_cast<float*>(wide.get());
    const int64_t row_grain = std::max<int64_t>(1, kElementsPerThread / padded);
    parallel_for(m, row_grain, threads, [&](int64_t begin, int64_t end, int) {
        floats.widen_rows(dtype, static_cast<const char*>(x) + begin * row_bytes, end - begin, k, padded,
                          rows + begin * padded);
    });
    const FloatLinearCall call{
        rows,         m,      k, padded, layer.n, layer.weight, layer.bias, layer.bias_dtype, dtype,
        projection.y, nullptr};
    FloatColumns(floats, threads, m, padded, layer.n).run(call);
}

}  // namespace

void project(const KernelTable& kernels, int threads, int dtype,
             std::initializer_list<Projection> projections, int64_t m, const void* x) {
    LinearCall calls[kMostProjections];
    int64_t count = 0, k = 0;
    for (const Projection& projection : projections) {
        const llmint8_decoder_linear& layer = projection.layer;
        if (layer.absmax == nullptr) {
            float_linear(kernels, threads, dtype, projection, m, x);
            continue;
        }
        calls[count++] = {layer.n,
                          static_cast<const int8_t*>(layer.weight),
                          layer.absmax,
                          layer.bias,
                          layer.bias_dtype,
                          layer.threshold,
                          layer.outliers,
                          layer.outlier_cols,
                          layer.weight_low,
                          projection.y,
                          dtype};
        k = layer.k;
    }
    if (count > 0) linear_group(kernels, threads, calls, count, m, k, x);
}

}  // namespace llmint8
