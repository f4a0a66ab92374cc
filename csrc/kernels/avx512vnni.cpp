// AVX-512 VNNI: vpdpbusd multiplies 64 unsigned bytes by 64 signed ones and sums fours into int32 lanes.
//
// Weights become unsigned by adding 128 (one xor), which the row's digit sum undoes: sums wrap modulo 2^32,
// and the true ones fit. Two regimes:
//   few rows:  weights are read once, straight from the row-major matrix, as dot products along k;
//   many rows: 32 weight rows become a panel [group of 4 along k][column][4] in a scratch that fits L2, and
//              tiles of up to 12 x 32 sums stay in registers while one row digit is broadcast at a time. An
//              outlier costs one more pair of products, because its group in the panel is found by index.
#include <immintrin.h>

#include <algorithm>

#include "kernels/row_math.h"

namespace llmint8 {
namespace {

constexpr int kColumns = 32;    // a panel: two registers of 16 columns
constexpr int kMaxRows = 12;    // 24 accumulators, 2 panel registers, 1 broadcast: of 32
constexpr int kDotRows = 4;     // rows of x that share one pass over the weights
constexpr int kDotColumns = 4;  // weight rows read side by side
constexpr int64_t kFewRows = 8; // up to here packing a panel costs more than it saves

inline __m512i to_unsigned(__m512i codes) {
    return _mm512_xor_si512(codes, _mm512_set1_epi8(static_cast<char>(0x80)));
}

inline __mmask64 tail_mask(int64_t count) {
    return count >= 64 ? ~0ull : (1ull << count) - 1;
}

// Four registers of 16 partial sums to four sums.
inline __m128i sum_lanes(__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

struct DotColumns {  // four weight rows; past the end of the matrix the last one repeats
    const int8_t* at[kDotColumns];
};

inline __m512i load_codes(const int8_t* weight, int64_t i, int64_t k) {
    return to_unsigned(k - i >= 64 ? _mm512_loadu_si512(weight + i)
                                   : _mm512_maskz_loadu_epi8(tail_mask(k - i), weight + i));
}

template <int kRows>
inline void dot_low(const DotColumns& w, const int8_t* lo, int64_t stride, int64_t k, int32_t* sums,
                    int sums_stride) {
    __m512i acc[kRows][kDotColumns];
    for (auto& row : acc) {
        for (auto& sum : row) sum = _mm512_setzero_si512();
    }
    for (int64_t i = 0; i < k; i += 64) {
        __m512i codes[kDotColumns];
        for (int c = 0; c < kDotColumns; ++c) codes[c] = load_codes(w.at[c], i, k);
        for (int r = 0; r < kRows; ++r) {
            const __m512i digits = _mm512_load_si512(lo + r * stride + i);
            for (int c = 0; c < kDotColumns; ++c) acc[r][c] = _mm512_dpbusd_epi32(acc[r][c], codes[c], digits);
        }
    }
    for (int r = 0; r < kRows; ++r) {
        const __m128i four = sum_lanes(acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + r * sums_stride), four);
    }
}

inline void dot_high(const DotColumns& w, const QuantizedRows& rows, int64_t row, int32_t* sums) {
    __m512i acc[kDotColumns];
    for (auto& sum : acc) sum = _mm512_setzero_si512();
    const uint32_t* units = rows.high_units(row);
    for (uint32_t u = 0; u < rows.high_count(row); ++u) {
        const int64_t i = units[u] * kRowUnit;
        const __m512i digits = _mm512_load_si512(rows.hi(row) + i);
        for (int c = 0; c < kDotColumns; ++c) {
            acc[c] = _mm512_dpbusd_epi32(acc[c], load_codes(w.at[c], i, rows.k()), digits);
        }
    }
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums), sum_lanes(acc[0], acc[1], acc[2], acc[3]));
}

// Few rows: all of them, one tile of columns.
void few_rows(const LinearCall& call, int64_t begin, int64_t end) {
    const QuantizedRows& rows = *call.rows;
    const int64_t m = rows.m(), k = rows.k(), stride = rows.padded_k();
    alignas(64) int32_t low[kFewRows][kColumns], high[kFewRows][kColumns];
    for (int64_t n = begin; n < end; n += kDotColumns) {
        DotColumns w;
        for (int c = 0; c < kDotColumns; ++c) w.at[c] = call.weight + std::min(n + c, end - 1) * k;
        for (int64_t row = 0; row < m;) {
            int32_t* sums = &low[row][n - begin];
            const int8_t* lo = rows.lo(row);
            switch (std::min<int64_t>(m - row, kDotRows)) {
                case 1: dot_low<1>(w, lo, stride, k, sums, kColumns), row += 1; break;
                case 2: dot_low<2>(w, lo, stride, k, sums, kColumns), row += 2; break;
                case 3: dot_low<3>(w, lo, stride, k, sums, kColumns), row += 3; break;
                default: dot_low<4>(w, lo, stride, k, sums, kColumns), row += 4;
            }
        }
        for (int64_t row = 0; row < m; ++row) {
            if (rows.high_count(row) > 0) dot_high(w, rows, row, &high[row][n - begin]);
        }
    }
    const ColumnScales<kColumns> columns(call, begin, end);
    for (int64_t row = 0; row < m; ++row) {
        const bool has_high = rows.high_count(row) > 0;
        for (int c = 0; c < kColumns; ++c) low[row][c] -= 128 * rows.scale(row).lo_sum;
        for (int c = 0; has_high && c < kColumns; ++c) high[row][c] -= 128 * rows.scale(row).hi_sum;
        finish_row(call, columns, row, begin, end, low[row], has_high ? high[row] : nullptr);
    }
}

// 16 rows of 16 int32 to 16 columns, in place.
inline void transpose(__m512i (&v)[16]) {
    __m512i t[16];
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 2; ++j) {
            v[4 * i + 2 * j] = _mm512_unpacklo_epi64(t[4 * i + j], t[4 * i + 2 + j]);
            v[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(t[4 * i + j], t[4 * i + 2 + j]);
        }
    }
    for (int j = 0; j < 4; ++j) {
        t[j] = _mm512_shuffle_i32x4(v[j], v[4 + j], 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(v[j], v[4 + j], 0xdd);
        t[8 + j] = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0x88);
        t[12 + j] = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0xdd);
    }
    for (int j = 0; j < 4; ++j) {
        v[j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88);
        v[4 + j] = _mm512_shuffle_i32x4(t[4 + j], t[12 + j], 0x88);
        v[8 + j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0xdd);
        v[12 + j] = _mm512_shuffle_i32x4(t[4 + j], t[12 + j], 0xdd);
    }
}

// Weight rows [begin, end) to a panel [padded_k / 4][32][4], unsigned.
void pack_panel(const LinearCall& call, int64_t begin, int64_t end, uint8_t* panel) {
    const int64_t k = call.rows->k();
    for (int half = 0; half < 2; ++half) {
        for (int64_t i = 0; i < k; i += 64) {
            __m512i v[16];
            for (int c = 0; c < 16; ++c) {
                const int8_t* weight = call.weight + std::min(begin + half * 16 + c, end - 1) * k;
                v[c] = load_codes(weight, i, k);
            }
            transpose(v);
            uint8_t* to = panel + i * kColumns + half * 64;
            for (int g = 0; g < 16; ++g) _mm512_store_si512(to + g * 4 * kColumns, v[g]);
        }
    }
}

inline __m512i broadcast_group(const int8_t* digits) {
    int32_t four;
    std::memcpy(&four, digits, sizeof four);
    return _mm512_set1_epi32(four);
}

template <int kRows>
void tile_low(const uint8_t* panel, const int8_t* lo, int64_t groups, int32_t (*sums)[kColumns]) {
    __m512i acc[kRows][2];
    for (auto& row : acc) row[0] = row[1] = _mm512_setzero_si512();
    for (int64_t g = 0; g < groups; ++g, panel += 4 * kColumns, lo += 4 * kRows) {
        const __m512i left = _mm512_load_si512(panel), right = _mm512_load_si512(panel + 64);
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) {
            const __m512i digits = broadcast_group(lo + 4 * r);
            acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], left, digits);
            acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], right, digits);
        }
    }
    for (int r = 0; r < kRows; ++r) {
        _mm512_store_si512(sums[r], acc[r][0]);
        _mm512_store_si512(sums[r] + 16, acc[r][1]);
    }
}

using TileLow = void (*)(const uint8_t*, const int8_t*, int64_t, int32_t (*)[kColumns]);
constexpr TileLow kTileLow[kMaxRows + 1] = {nullptr,     tile_low<1>,  tile_low<2>,  tile_low<3>, tile_low<4>,
                                            tile_low<5>, tile_low<6>,  tile_low<7>,  tile_low<8>, tile_low<9>,
                                            tile_low<10>, tile_low<11>, tile_low<12>};

// The high digits of one row of a block; hi points at its first group, stride bytes apart from the next.
void row_high(const uint8_t* panel, const int8_t* hi, int64_t stride, const uint32_t* units, uint32_t count,
              int32_t* sums) {
    __m512i even[2], odd[2];  // two chains, because one would wait for its own latency
    even[0] = even[1] = odd[0] = odd[1] = _mm512_setzero_si512();
    uint32_t u = 0;
    for (; u + 1 < count; u += 2) {
        const int64_t g = units[u], h = units[u + 1];
        const __m512i a = broadcast_group(hi + g * stride), b = broadcast_group(hi + h * stride);
        even[0] = _mm512_dpbusd_epi32(even[0], _mm512_load_si512(panel + g * 4 * kColumns), a);
        even[1] = _mm512_dpbusd_epi32(even[1], _mm512_load_si512(panel + g * 4 * kColumns + 64), a);
        odd[0] = _mm512_dpbusd_epi32(odd[0], _mm512_load_si512(panel + h * 4 * kColumns), b);
        odd[1] = _mm512_dpbusd_epi32(odd[1], _mm512_load_si512(panel + h * 4 * kColumns + 64), b);
    }
    if (u < count) {
        const int64_t g = units[u];
        const __m512i a = broadcast_group(hi + g * stride);
        even[0] = _mm512_dpbusd_epi32(even[0], _mm512_load_si512(panel + g * 4 * kColumns), a);
        even[1] = _mm512_dpbusd_epi32(even[1], _mm512_load_si512(panel + g * 4 * kColumns + 64), a);
    }
    _mm512_store_si512(sums, _mm512_add_epi32(even[0], odd[0]));
    _mm512_store_si512(sums + 16, _mm512_add_epi32(even[1], odd[1]));
}

// Many rows: all blocks of them against one panel.
void many_rows(const LinearCall& call, int64_t begin, int64_t end, uint8_t* panel) {
    const QuantizedRows& rows = *call.rows;
    pack_panel(call, begin, end, panel);
    const ColumnScales<kColumns> columns(call, begin, end);
    alignas(64) int32_t low[kMaxRows][kColumns], high[kColumns];
    for (int64_t b = 0; b < rows.blocks(); ++b) {
        const int64_t count = rows.block_rows(b);
        kTileLow[count](panel, rows.lo(b), (rows.k() + 3) / 4, low);
        for (int64_t r = 0; r < count; ++r) {
            const int64_t row = rows.block_begin(b) + r;
            const RowScale& scale = rows.scale(row);
            const uint32_t high_count = rows.high_count(row);
            for (int c = 0; c < kColumns; ++c) low[r][c] -= 128 * scale.lo_sum;
            if (high_count > 0) {
                row_high(panel, rows.hi(b) + 4 * r, 4 * count, rows.high_units(row), high_count, high);
                for (int c = 0; c < kColumns; ++c) high[c] -= 128 * scale.hi_sum;
            }
            finish_row(call, columns, row, begin, end, low[r], high_count > 0 ? high : nullptr);
        }
    }
}

int64_t rows_per_block(int64_t m) {
    return m <= kFewRows ? 1 : kMaxRows;
}

int64_t scratch_bytes(const QuantizedRows& rows) {
    return rows.m() <= kFewRows ? 0 : rows.padded_k() * kColumns;
}

void linear_columns(const LinearCall& call, int64_t begin, int64_t end, void* scratch) {
    if (call.rows->m() <= kFewRows) {
        few_rows(call, begin, end);
    } else {
        many_rows(call, begin, end, static_cast<uint8_t*>(scratch));
    }
}

}  // namespace

const KernelTable kAvx512VnniTable = {"avx512vnni",  LLMINT8_CPU_AVX512_VNNI, kColumns,      rows_per_block,
                                      scratch_bytes, quantize_row,            linear_columns};

}  // namespace llmint8
