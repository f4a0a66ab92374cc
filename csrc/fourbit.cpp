#include "fourbit.h"

#include <algorithm>

#include "decoder_kernels.h"
#include "float_columns.h"
#include "parallel.h"

namespace llmint8 {

namespace {

// Fewer elements are not worth a thread.
constexpr int64_t kElementsPerThread = 1 << 15;
// Rows of x that meet a weight while it is wide: they should stay in the second cache, but a few rows less
// would make unpacking the weight the larger part.
constexpr int64_t kRowBytes = 192 << 10, kLeastRows = 12;

}  // namespace

void fourbit_linear(const KernelTable& kernels, int threads, const FourbitLinear& call) {
    const DecoderKernels& floats = decoder_kernels(kernels);
    const int64_t padded = pad_floats(call.k);
    const int64_t bytes = call.dtype == LLMINT8_FLOAT32 ? 4 : 2,
                  wide_bytes = static_cast<int64_t>(sizeof(float));
    const int64_t most = std::max(kLeastRows, kRowBytes / std::max<int64_t>(1, padded * wide_bytes));
    const int64_t rows = std::min(call.m, most);
    const Buffer wide = allocate(rows * padded * wide_bytes);
    float* const x = reinterpret_cast<float*>(wide.get());
    const FloatColumns columns(floats, threads, rows, padded, call.n);
    for (int64_t begin = 0; begin < call.m; begin += rows) {
        const int64_t count = std::min(rows, call.m - begin);
        floats.widen_rows(call.dtype, static_cast<const char*>(call.x) + begin * call.k * bytes, count,
                          call.k, padded, x);
        const FloatLinearCall part{x,           count,
                                   call.k,      padded,
                                   call.n,      nullptr,
                                   call.bias,   call.bias_dtype,
                                   call.dtype,  static_cast<char*>(call.y) + begin * call.n * bytes,
                                   &call.weight};
        columns.run(part);
    }
}

void fourbit_dequantize(const KernelTable& kernels, int threads, const FourbitWeight& weight, int64_t count,
                        int dtype, void* out) {
    const DecoderKernels& floats = decoder_kernels(kernels);
    const int64_t bytes = dtype == LLMINT8_FLOAT32 ? 4 : 2;
    parallel_for(count, kElementsPerThread, threads, [&](int64_t begin, int64_t end, int) {
        floats.fourbit_elements(weight, begin, end - begin, dtype, static_cast<char*>(out) + begin * bytes);
    });
}

}  // namespace llmint8
