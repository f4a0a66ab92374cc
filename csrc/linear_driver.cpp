#include "linear_driver.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "parallel.h"

namespace llmint8 {

namespace {

// Below this many multiplications, waking threads costs more than they save.
constexpr int64_t kWorkPerThread = 1 << 17;

// Private memory of a thread that quantises: a row of floats, a row of each digit.
struct RowScratch {
    explicit RowScratch(int64_t padded_k, int threads)
        : padded_k(padded_k), memory(allocate(threads * bytes())) {}

    int64_t bytes() const { return padded_k * static_cast<int64_t>(sizeof(float) + 2); }
    float* widened(int thread) const { return reinterpret_cast<float*>(memory.get() + thread * bytes()); }
    int8_t* lo(int thread) const { return reinterpret_cast<int8_t*>(widened(thread) + padded_k); }
    int8_t* hi(int thread) const { return lo(thread) + padded_k; }

    int64_t padded_k;
    Buffer memory;
};

// Digits of rows [0, m), handed to `take` row by row; lo and hi are padded with zeros.
void for_each_quantized_row(
    const KernelTable& kernels, int threads, int dtype, int64_t m, int64_t k, const void* x, float threshold,
    const std::function<void(int64_t, const int8_t*, const int8_t*, const RowScale&)>& take) {
    const int64_t padded_k = (k + kRowUnit - 1) / kRowUnit * kRowUnit;
    const int64_t grain = std::max<int64_t>(1, kWorkPerThread / 8 / std::max<int64_t>(1, k));
    const RowScratch scratch(padded_k, thread_count(m, grain, threads));
    const int64_t row_bytes = k * (dtype == LLMINT8_FLOAT32 ? 4 : 2);
    parallel_for(m, grain, threads, [&](int64_t begin, int64_t end, int thread) {
        int8_t *lo = scratch.lo(thread), *hi = scratch.hi(thread);
        std::memset(lo + k, 0, static_cast<size_t>(padded_k - k));
        std::memset(hi + k, 0, static_cast<size_t>(padded_k - k));
        for (int64_t row = begin; row < end; ++row) {
            const void* source = static_cast<const char*>(x) + row * row_bytes;
            take(row, lo, hi,
                 kernels.quantize_row(source, dtype, k, threshold, scratch.widened(thread), lo, hi));
        }
    });
}

}  // namespace

void quantize_rows(const KernelTable& kernels, int threads, int dtype, int64_t m, int64_t k, const void* x,
                   float threshold, int16_t* q, float* row_scale) {
    for_each_quantized_row(kernels, threads, dtype, m, k, x, threshold,
                           [&](int64_t row, const int8_t* lo, const int8_t* hi, const RowScale& scale) {
                               for (int64_t i = 0; i < k; ++i) {
                                   q[row * k + i] = static_cast<int16_t>(lo[i] + 256 * hi[i]);
                               }
                               row_scale[row] = scale.scale;
                           });
}

void linear(const KernelTable& kernels, int threads, LinearCall call, int64_t m, int64_t k, const void* x,
            float threshold) {
    QuantizedRows rows(m, k, kernels.rows_per_block(m), kernels.digit_bytes);
    for_each_quantized_row(kernels, threads, call.dtype, m, k, x, threshold,
                           [&](int64_t row, const int8_t* lo, const int8_t* hi, const RowScale& scale) {
                               rows.store(row, lo, hi, scale);
                           });
    call.rows = &rows;
    const int64_t tile = kernels.column_tile, work = std::max<int64_t>(1, m * k * tile);
    const int64_t grain = tile * std::max<int64_t>(1, kWorkPerThread / work);
    const int64_t scratch = kernels.scratch_bytes(rows);
    const Buffer memory = allocate(scratch * thread_count(call.n, grain, threads));
    parallel_for(call.n, grain, threads, [&](int64_t begin, int64_t end, int thread) {
        for (int64_t n = begin; n < end; n += tile) {
            kernels.linear_columns(call, n, std::min(end, n + tile), memory.get() + thread * scratch);
        }
    });
}

}  // namespace llmint8
