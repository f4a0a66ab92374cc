#include "linear_driver.h"

#include <algorithm>
#include <cstring>

#include "parallel.h"

namespace llmint8 {

namespace {

// Below this many multiplications, waking threads costs more than they save.
constexpr int64_t kWorkPerThread = 1 << 17;

int64_t padded(int64_t k) {
    return (k + kPadding - 1) / kPadding * kPadding;
}

// How many rows of k elements are worth a thread.
int64_t row_grain(int64_t k) {
    return std::max<int64_t>(1, kWorkPerThread / 8 / std::max<int64_t>(1, k));
}

// The rows of x, and their digits.
struct RowSource {
    // lo, hi: padded(k) bytes; widened: as many floats.
    RowScale quantize(int64_t row, float* widened, int8_t* lo, int8_t* hi) const {
        const void* source = static_cast<const char*>(x) + row * k * (dtype == LLMINT8_FLOAT32 ? 4 : 2);
        const RowScale scale = kernels.quantize_row(source, dtype, k, threshold, widened, lo, hi);
        const int64_t written = scale.has_high ? k : 0;
        std::memset(lo + k, 0, static_cast<size_t>(padded(k) - k));
        std::memset(hi + written, 0, static_cast<size_t>(padded(k) - written));
        return scale;
    }

    const KernelTable& kernels;
    int dtype;
    int64_t k;
    const void* x;
    float threshold;
};

// Private memory of a thread that quantises `rows` rows together: a row of floats, their digits and scales.
struct RowScratch {
    RowScratch(int64_t k, int64_t rows, int threads)
        : k(padded(k)), rows(rows), memory(allocate(threads * bytes())) {}

    int64_t bytes() const {
        const int64_t each = 2 * k + static_cast<int64_t>(sizeof(RowScale));
        return (k * static_cast<int64_t>(sizeof(float)) + rows * each + 63) / 64 * 64;
    }
    float* widened(int thread) const { return reinterpret_cast<float*>(memory.get() + thread * bytes()); }
    int8_t* lo(int thread) const { return reinterpret_cast<int8_t*>(widened(thread) + k); }
    int8_t* hi(int thread) const { return lo(thread) + rows * k; }
    RowScale* scales(int thread) const { return reinterpret_cast<RowScale*>(hi(thread) + rows * k); }

    int64_t k, rows;
    Buffer memory;
};

void quantize_blocks(const RowSource& source, int threads, QuantizedRows& rows) {
    const int64_t most = rows.block_rows(0), grain = (row_grain(rows.k()) + most - 1) / most;
    const RowScratch scratch(rows.k(), most, thread_count(rows.blocks(), grain, threads));
    parallel_for(rows.blocks(), grain, threads, [&](int64_t begin, int64_t end, int thread) {
        float* widened = scratch.widened(thread);
        int8_t *lo = scratch.lo(thread), *hi = scratch.hi(thread);
        RowScale* scales = scratch.scales(thread);
        for (int64_t b = begin; b < end; ++b) {
            for (int64_t r = 0; r < rows.block_rows(b); ++r) {
                scales[r] =
                    source.quantize(rows.block_begin(b) + r, widened, lo + r * scratch.k, hi + r * scratch.k);
            }
            rows.store(b, lo, hi, scales, reinterpret_cast<uint8_t*>(widened));
        }
    });
}

// Every tile of columns reads all rows of a chunk, which must not come from memory each time; and it packs
// its weights anew, which few rows would not repay.
constexpr int64_t kChunkBytes = 8 << 20, kLeastRows = 256;

void linear_chunk(const KernelTable& kernels, int threads, LinearCall call, int64_t m, int64_t k,
                  const void* x, float threshold) {
    QuantizedRows rows(m, k, kernels.rows_per_block(m), kernels.digit_bytes, kernels.unit);
    quantize_blocks({kernels, call.dtype, k, x, threshold}, threads, rows);
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

}  // namespace

void quantize_rows(const KernelTable& kernels, int threads, int dtype, int64_t m, int64_t k, const void* x,
                   float threshold, int16_t* q, float* row_scale) {
    const RowSource source{kernels, dtype, k, x, threshold};
    const int64_t grain = row_grain(k);
    const RowScratch scratch(k, 1, thread_count(m, grain, threads));
    parallel_for(m, grain, threads, [&](int64_t begin, int64_t end, int thread) {
        int8_t *lo = scratch.lo(thread), *hi = scratch.hi(thread);
        for (int64_t row = begin; row < end; ++row) {
            row_scale[row] = source.quantize(row, scratch.widened(thread), lo, hi).scale;
            for (int64_t i = 0; i < k; ++i) q[row * k + i] = static_cast<int16_t>(lo[i] + 256 * hi[i]);
        }
    });
}

void linear(const KernelTable& kernels, int threads, LinearCall call, int64_t m, int64_t k, const void* x,
            float threshold) {
    const int64_t size = call.dtype == LLMINT8_FLOAT32 ? 4 : 2,
                  row_bytes = 2 * padded(k) * kernels.digit_bytes;
    const int64_t most = std::max(kLeastRows, kChunkBytes / std::max<int64_t>(1, row_bytes));
    const int64_t chunks = (m + most - 1) / most;
    void* const y = call.y;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t begin = m * chunk / chunks, end = m * (chunk + 1) / chunks;
        call.y = static_cast<char*>(y) + begin * call.n * size;
        linear_chunk(kernels, threads, call, end - begin, k, static_cast<const char*>(x) + begin * k * size,
                     threshold);
    }
}

}  // namespace llmint8
