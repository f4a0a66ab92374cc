// The kernel that runs anywhere: the contract as three loops, no packing. It is also the model of the others.
#include "kernels/row_math.h"

namespace llmint8 {
namespace {

constexpr int kColumns = 16;

int64_t rows_per_block(int64_t) {
    return 1;
}

int64_t scratch_bytes(const QuantizedRows&) {
    return 0;
}

int32_t dot(const int8_t* a, const int8_t* b, int64_t count) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
    return sum;
}

void linear_columns(const LinearCall& call, int64_t begin, int64_t end, void*) {
    const QuantizedRows& rows = *call.rows;
    const int64_t k = rows.k();
    const ColumnScales<kColumns> columns(call, begin, end);
    for (int64_t row = 0; row < rows.m(); ++row) {
        int32_t low[kColumns] = {}, high[kColumns] = {};
        for (int64_t n = begin; n < end; ++n) {
            const int8_t* weight = call.weight + n * k;
            low[n - begin] = dot(rows.lo<int8_t>(row), weight, k);
            for (uint32_t i = 0; i < rows.high_count(row); ++i) {
                const int64_t at = rows.high_units(row)[i] * kRowUnit;
                high[n - begin] +=
                    dot(rows.hi<int8_t>(row) + at, weight + at, k - at < kRowUnit ? k - at : kRowUnit);
            }
        }
        finish_row(call, columns, row, begin, end, low, rows.high_count(row) > 0 ? high : nullptr);
    }
}

}  // namespace

const KernelTable kScalarTable = {"scalar",      0, kColumns, 1, rows_per_block, scratch_bytes, quantize_row,
                                  linear_columns};

}  // namespace llmint8
