#include "linear_driver.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "parallel.h"
#include "row_source.h"

namespace llmint8 {

namespace {

// Below this many multiplications, waking threads costs more than they save.
constexpr int64_t kWorkPerThread = 1 << 17;

// How many rows of k elements are worth a thread.
int64_t row_grain(int64_t k) {
    return std::max<int64_t>(1, kWorkPerThread / 8 / std::max<int64_t>(1, k));
}

// Layers on the same rows, and the digits that they share.
struct Group {
    Group(const KernelTable& kernels, std::vector<LinearCall> layers, int64_t m, int64_t k)
        : rows(digits(kernels, m, k)), calls(std::move(layers)) {
        outlier_rows.reserve(calls.size());
        for (LinearCall& call : calls) {
            call.rows = &rows;
            if (call.p == 0) continue;
            outlier_rows.push_back(digits(kernels, m, call.p));
            call.outlier_rows = &outlier_rows.back();
            most_outliers = std::max(most_outliers, call.p);
        }
    }

    static QuantizedRows digits(const KernelTable& kernels, int64_t m, int64_t k) {
        return QuantizedRows(m, k, kernels.layout(m));
    }

    QuantizedRows rows;
    std::vector<QuantizedRows> outlier_rows;  // one for each call that has outlier columns
    std::vector<LinearCall> calls;
    int64_t most_outliers = 0;
};

// The digits of some columns of a row, and their sums. hi: null if all are zero.
RowScale gather(const int32_t* columns, int64_t p, const int8_t* lo, const int8_t* hi, int8_t* own_lo,
                int8_t* own_hi) {
    RowScale sums{0.0f, 0, 0, false, true};
    int64_t lo_magnitudes = 0, hi_magnitudes = 0;
    for (int64_t i = 0; i < p; ++i) {
        own_lo[i] = lo[columns[i]];
        own_hi[i] = hi != nullptr ? hi[columns[i]] : int8_t{0};
        sums.lo_sum += own_lo[i];
        sums.hi_sum += own_hi[i];
        sums.has_high |= own_hi[i] != 0;
        lo_magnitudes += std::abs(own_lo[i]);
        hi_magnitudes += std::abs(own_hi[i]);
    }
    sums.joint = can_join(lo_magnitudes, hi_magnitudes);
    std::memset(own_lo + p, 0, static_cast<size_t>(padded(p) - p));
    std::memset(own_hi + p, 0, static_cast<size_t>(padded(p) - p));
    return sums;
}

// Quantises the rows of a group, block by block; those of a block that is alone are divided among the
// threads.
class BlockQuantizer {
  public:
    BlockQuantizer(const RowSource& source, int threads, Group& group)
        : source_(source),
          group_(group),
          most_(group.rows.block_rows(0)),
          row_grain_(row_grain(group.rows.k())),
          block_grain_((row_grain_ + most_ - 1) / most_),
          threads_(threads),
          scratch_(group.rows.k(), most_, team()),
          own_(group.most_outliers, most_, team()) {}

    void run() {
        if (is_alone()) {
            parallel_for(most_, row_grain_, threads_,
                         [&](int64_t begin, int64_t end, int thread) { quantize(0, begin, end, thread, 0); });
            return store(0, 0);
        }
        parallel_for(group_.rows.blocks(), block_grain_, threads_,
                     [&](int64_t begin, int64_t end, int thread) {
                         for (int64_t b = begin; b < end; ++b) {
                             quantize(b, 0, group_.rows.block_rows(b), thread, thread);
                             store(b, thread);
                         }
                     });
    }

  private:
    bool is_alone() const { return group_.rows.blocks() == 1; }
    int team() const {
        return is_alone() ? thread_count(most_, row_grain_, threads_)
                          : thread_count(group_.rows.blocks(), block_grain_, threads_);
    }

    // Digits of the rows of a block, one row after the other.
    struct Digits {
        int8_t *lo, *hi;
    };

    // Where they are written: at once to where they will lie, or to the memory of a thread, the owner.
    Digits digits(int64_t b, int owner) const {
        int8_t *const lo = group_.rows.plain_low(b), *const hi = group_.rows.plain_high(b);
        return {lo != nullptr ? lo : scratch_.lo(owner), hi != nullptr ? hi : scratch_.hi(owner)};
    }

    // Rows [begin, end) of a block.
    void quantize(int64_t b, int64_t begin, int64_t end, int thread, int owner) const {
        const Digits to = digits(b, owner);
        const int64_t first = group_.rows.block_begin(b), k = scratch_.k;
        for (int64_t r = begin; r < end; ++r) {
            group_.rows.set_scale(first + r, source_.quantize(first + r, scratch_.widened(thread),
                                                              to.lo + r * k, to.hi + r * k));
        }
    }

    // Such a block, and its columns with second digits.
    void store(int64_t b, int thread) {
        QuantizedRows& rows = group_.rows;
        const Digits from = digits(b, thread);
        const int64_t first = rows.block_begin(b), count = rows.block_rows(b), k = scratch_.k;
        const auto has_high = [&](int64_t r) { return rows.row(first + r).scale.has_high; };
        rows.store(b, from.lo, from.hi, reinterpret_cast<uint8_t*>(scratch_.widened(thread)));
        size_t next = 0;
        for (const LinearCall& call : group_.calls) {
            if (call.p == 0) continue;
            QuantizedRows& own = group_.outlier_rows[next++];
            int8_t *own_lo = own_.lo(thread), *own_hi = own_.hi(thread);
            for (int64_t r = 0; r < count; ++r) {
                own.set_scale(first + r, gather(call.outlier_cols, call.p, from.lo + r * k,
                                                has_high(r) ? from.hi + r * k : nullptr,
                                                own_lo + r * padded(call.p), own_hi + r * padded(call.p)));
            }
            own.store(b, own_lo, own_hi, reinterpret_cast<uint8_t*>(own_.widened(thread)));
        }
    }

    const RowSource& source_;
    Group& group_;
    const int64_t most_, row_grain_, block_grain_;  // most_: rows of a block
    const int threads_;
    const RowScratch scratch_, own_;  // own_: of columns with second digits
};

// All tiles of columns, those of one call after those of another, divided among the threads.
void multiply(const KernelTable& kernels, int threads, const Group& group) {
    const int64_t tile = kernels.column_tile;
    int64_t tiles = 0, scratch = 0;
    for (const LinearCall& call : group.calls) {
        tiles += (call.n + tile - 1) / tile;
        scratch = std::max(scratch, kernels.scratch_bytes(call));
    }
    const int64_t work = std::max<int64_t>(1, group.rows.m() * group.rows.k() * tile);
    const int64_t grain = std::max<int64_t>(1, kWorkPerThread / work);
    const Buffer memory = allocate(scratch * thread_count(tiles, grain, threads));
    parallel_for(tiles, grain, threads, [&](int64_t begin, int64_t end, int thread) {
        int64_t first = 0;  // tile of the call
        for (const LinearCall& call : group.calls) {
            const int64_t own = (call.n + tile - 1) / tile;
            const int64_t from = std::max(begin, first) - first, to = std::min(end, first + own) - first;
            if (from < to) {
                kernels.linear_columns(call, from * tile, std::min(call.n, to * tile),
                                       memory.get() + thread * scratch);
            }
            first += own;
        }
    });
}

// Every tile of columns reads all rows of a chunk, which must not come from memory each time; and it packs
// its weights anew, which few rows would not repay.
constexpr int64_t kChunkBytes = 8 << 20, kLeastRows = 256;

}  // namespace

void quantize_rows(const KernelTable& kernels, int threads, int dtype, int64_t m, int64_t k, const void* x,
                   float threshold, int16_t* q, float* row_scale) {
    const RowSource source{kernels, dtype, k, x, threshold};
    const int64_t grain = row_grain(k);
    const RowScratch scratch(k, 1, thread_count(m, grain, threads));
    parallel_for(m, grain, threads, [&](int64_t begin, int64_t end, int thread) {
        int8_t *lo = scratch.lo(thread), *hi = scratch.hi(thread);
        for (int64_t row = begin; row < end; ++row) {
            const RowScale scale = source.quantize(row, scratch.widened(thread), lo, hi);
            row_scale[row] = scale.scale;
            if (!scale.has_high) std::memset(hi, 0, static_cast<size_t>(k));
            for (int64_t i = 0; i < k; ++i) q[row * k + i] = static_cast<int16_t>(lo[i] + 256 * hi[i]);
        }
    });
}

void linear(const KernelTable& kernels, int threads, const LinearCall& call, int64_t m, int64_t k,
            const void* x) {
    linear_group(kernels, threads, &call, 1, m, k, x);
}

void linear_group(const KernelTable& kernels, int threads, const LinearCall* calls, int64_t count, int64_t m,
                  int64_t k, const void* x) {
    const LinearCall& first = calls[0];
    const auto shares_digits = [&](const LinearCall& call) { return call.threshold == first.threshold; };
    if (!std::all_of(calls, calls + count, shares_digits)) {
        for (int64_t i = 0; i < count; ++i) linear(kernels, threads, calls[i], m, k, x);
        return;
    }
    int64_t width = padded(k);
    for (int64_t i = 0; i < count; ++i) width += padded(calls[i].p);
    const int64_t row_bytes = 2 * width * kernels.layout(m).digit_bytes,
                  size = first.dtype == LLMINT8_FLOAT32 ? 4 : 2;
    const int64_t most = std::max(kLeastRows, kChunkBytes / std::max<int64_t>(1, row_bytes));
    const int64_t chunks = (m + most - 1) / most;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t begin = m * chunk / chunks, end = m * (chunk + 1) / chunks;
        std::vector<LinearCall> layers(calls, calls + count);
        for (LinearCall& call : layers) call.y = static_cast<char*>(call.y) + begin * call.n * size;
        Group group(kernels, std::move(layers), end - begin, k);
        const void* rows = static_cast<const char*>(x) + begin * k * size;
        BlockQuantizer({kernels, first.dtype, k, rows, first.threshold}, threads, group).run();
        multiply(kernels, threads, group);
    }
}

}  // namespace llmint8
