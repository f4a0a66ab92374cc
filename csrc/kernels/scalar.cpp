// The kernel that runs anywhere: the contract as three loops, no packing. It is also the model of the others.
#include "kernels/epilogue.h"

namespace llmint8 {
namespace {

constexpr int kColumns = 16;
constexpr int64_t kUnit = 64;

// Plain rows; units of zeros are left out.
DigitLayout layout(int64_t) {
    return {1, 1, kUnit, kWordBytes, 1.0, 2.5};
}

int64_t scratch_bytes(const LinearCall&) {
    return 0;
}

int32_t dot(const int8_t* a, const int8_t* b, int64_t count) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
    return sum;
}

// The sums of one row of a product and one tile of columns.
struct RowSums {
    RowSums(const Product& product, int64_t row, int64_t begin, int64_t end) {
        const QuantizedRows& rows = *product.rows;
        const int64_t k = rows.k();
        const Block& block = rows.block(row);
        const HighUnits& own = rows.row(row).units;
        has_high = block.high != High::kNone;
        for (int64_t n = begin; n < end; ++n) {
            const int8_t* weight = product.weight + n * k;
            low[n - begin] = dot(static_cast<const int8_t*>(block.lo), weight, k);
            if (block.high == High::kWhole) {
                high[n - begin] = dot(static_cast<const int8_t*>(block.units.digits), weight, k);
            } else if (block.high == High::kOwn) {
                for (int64_t u = 0; u < own.count; ++u) {
                    const int64_t at = own.index[u] * kUnit;
                    high[n - begin] += dot(static_cast<const int8_t*>(own.digits) + u * kUnit, weight + at,
                                           k - at < kUnit ? k - at : kUnit);
                }
            }
        }
    }

    DigitSums sums() const { return {low, has_high ? high : nullptr, 0, 0}; }

    int32_t low[kColumns] = {}, high[kColumns] = {};
    bool has_high;
};

void linear_tile(const LinearCall& call, int64_t begin, int64_t end) {
    const ColumnScales<kColumns> columns(call, begin, end);
    for (int64_t row = 0; row < call.rows->m(); ++row) {
        const RowSums sums(call.codes(), row, begin, end);
        if (call.p == 0) {
            finish_row(call, columns, row, begin, end, sums.sums(), nullptr);
            continue;
        }
        const RowSums second(call.second_digits(), row, begin, end);
        const DigitSums second_sums = second.sums();
        finish_row(call, columns, row, begin, end, sums.sums(), &second_sums);
    }
}

void linear_columns(const LinearCall& call, int64_t begin, int64_t end, void*) {
    for (int64_t n = begin; n < end; n += kColumns) {
        linear_tile(call, n, end - n < kColumns ? end : n + kColumns);
    }
}

}  // namespace

const KernelTable kScalarTable = {"scalar", 0, kColumns, layout, scratch_bytes, quantize_row, linear_columns};

}  // namespace llmint8
