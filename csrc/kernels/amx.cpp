// AMX. Up to kDirectRows rows meet the weight as it lies in memory, [column][k], and their sums come out
// transposed: the weight is read once, at the speed of memory. More rows meet the panels of AVX-512 VNNI,
// unsigned codes, whose offset the row's digit sum undoes. A single row, and outliers that each of many rows
// has for itself, are AVX-512 VNNI's.
#include "kernels/amx_tiles.h"
#include "kernels/avx512vnni.h"

namespace llmint8 {
namespace {

constexpr int64_t kDirectRows = 32;
constexpr int64_t kPieceSteps = 10;  // of rows, and of a panel: 20 KiB each of 48

// Words of a panel for one step of a product: those that high digits of a block share.
struct GatheredWords {
    static constexpr int64_t kWords = kStepBytes / kWordBytes, kBytes = kWordBytes * Avx512Vnni::kColumns;

    // The first of `units`, up to kWords; behind the last any, for the digits there are zero.
    void gather(const uint8_t* from, const uint16_t* units, int64_t units_count) {
        panel = from, count = units_count < kWords ? units_count : kWords;
        for (int64_t w = 0; w < kWords; ++w) {
            const uint8_t* word = from + units[w < count ? w : 0] * kBytes;
            _mm512_store_si512(words + w * kBytes, _mm512_load_si512(word));
            _mm512_store_si512(words + w * kBytes + 64, _mm512_load_si512(word + 64));
            index[w] = units[w < count ? w : 0];
        }
        finish_writing(words);
    }

    bool has(const uint8_t* from, const HighUnits& units) const {
        return panel == from && count == units.count &&
               std::memcmp(index, units.index, static_cast<size_t>(count) * sizeof(uint16_t)) == 0;
    }

    alignas(64) uint8_t words[kWords * kBytes];
    const uint8_t* panel = nullptr;
    int64_t count = 0;
    uint16_t index[kWords];
};

// Outliers mostly lie in the same columns of all rows: their words are gathered once for all blocks.
class AmxUnit : public Tiles {
  public:
    void forget_panels() {
        for (GatheredWords& words : gathered_) words.panel = nullptr;
        next_ = 0;
    }

    // What the words of one step are, if there are no more.
    const uint8_t* words_of(const uint8_t* panel, const HighUnits& units) {
        for (const GatheredWords& words : gathered_) {
            if (words.has(panel, units)) return words.words;
        }
        GatheredWords& words = gathered_[next_++ % kPlaces];
        words.gather(panel, units.index, units.count);
        return words.words;
    }

  private:
    static constexpr int kPlaces = 8;  // panels that rows meet together, of both products
    GatheredWords gathered_[kPlaces];
    unsigned next_ = 0;
};

struct Amx : Avx512Vnni {
    using Unit = AmxUnit;
    static constexpr int kMaxRows = 2 * kTileRows;
    static constexpr int kPanels = 4;
    static constexpr int64_t kPatientBlocks = 8;  // with fewer, products would wait for memory
    static constexpr int64_t kFewRows = 1;

    // Direct rows have their high digits whole. Else a listed word of a block must be copied from the panel,
    // and one of a row takes two instructions where the dense product shares one among sixteen rows and
    // words.
    static DigitLayout layout(int64_t m) {
        if (m <= kFewRows) return Avx512Vnni::layout(m);
        if (m <= kDirectRows) return {kTileRows, 1, kUnit, kWordBytes, kNever, kNever};
        return {kMaxRows, 1, kUnit, kStepBytes, 2.2, 40.0, mark_words};
    }

    // No joint sums. In pieces of k: those of the rows stay in the first-level cache while the panels pass.
    template <class Sums>
    static void block(Tiles& tiles, int64_t rows, const uint8_t* panels, int64_t stride, int64_t count,
                      const HighUnits*, const void* digits, int64_t words, const Sums& sums_of) {
        tiles.shape(rows, kTileRows);
        const TileRows a = rows_of(digits, rows, tiles.upper());
        finish_writing(panels);
        const int64_t steps = steps_of(words), pieces = (steps + kPieceSteps - 1) / kPieceSteps;
        for (int64_t piece = 0; piece < pieces; ++piece) {
            const int64_t from = steps * piece / pieces, to = steps * (piece + 1) / pieces;
            for (int64_t i = 0; i < count; ++i) {
                int32_t* sums = sums_of(i)[0];
                const TileColumns b = columns_of(panels + i * stride);
                if (piece == 0) {
                    tiles.clear(true);
                } else {
                    tiles.load(sums, sums + kTileRows, kColumns);
                }
                for (int64_t s = from; s < to; ++s) {
                    tiles.fetch();
                    tiles.add<true>(a, b, s);
                }
                tiles.store(sums, sums + kTileRows, kColumns);
            }
        }
    }

    static void block_units(AmxUnit& tiles, int64_t rows, const uint8_t* panel, const HighUnits& units,
                            int32_t (*sums)[kColumns]) {
        tiles.shape(rows, kTileRows);
        tiles.clear(true);
        const TileRows a = rows_of(units.digits, rows, tiles.upper());
        const int64_t steps = steps_of(units.count);
        if (steps == 1) {
            tiles.add<true>(a, columns_of(tiles.words_of(panel, units)), 0);
        } else {
            GatheredWords gathered[2];  // two: one is read while the other is written
            for (int64_t s = 0; s < steps; ++s) {
                const int64_t first = s * GatheredWords::kWords;
                gathered[s % 2].gather(panel, units.index + first, units.count - first);
                TileColumns b = columns_of(gathered[s % 2].words);
                b.step = 0;
                tiles.add<true>(a, b, s);
            }
        }
        tiles.store(sums[0], sums[0] + kTileRows, kColumns);
    }

  private:
    static int64_t steps_of(int64_t words) { return (words * kWordBytes + kStepBytes - 1) / kStepBytes; }

    static TileRows rows_of(const void* digits, int64_t rows, int64_t upper) {
        return {digits, static_cast<const int8_t*>(digits) + upper * kStepBytes, kStepBytes,
                rows * kStepBytes};
    }

    static TileColumns columns_of(const uint8_t* panel) {
        return {panel, panel + kTileRows * kWordBytes, kWordBytes * kColumns, kStepBytes * kColumns};
    }
};

// Direct rows meet the codes as they are.
struct Direct : Amx {
    static constexpr int32_t kOffset = 0;
};
using DirectSums = TileSums<Direct, kTileRows>;

// Sums of up to 16 rows as the tiles return them, [column][row], to [row][column].
void transpose_sums(const int32_t (*columns)[kTileRows], int32_t (*rows)[Amx::kColumns]) {
    for (int half = 0; half < Amx::kColumns; half += kTileRows) {
        __m512i v[kTileRows];
        for (int c = 0; c < kTileRows; ++c) v[c] = _mm512_load_si512(columns[half + c]);
        transpose(v);
        for (int r = 0; r < kTileRows; ++r) _mm512_store_si512(rows[r] + half, v[r]);
    }
}

// A block of direct rows times columns [begin, end) of a product.
void direct_sums(Tiles& tiles, const Product& product, int64_t b, int64_t begin, int64_t end,
                 DirectSums& sums) {
    const Block& block = product.rows->block(b);
    const int64_t k = product.rows->k(), whole = k / kStepBytes, word = block.rows * kWordBytes;
    const WeightRows<Amx::kColumns> weight(product, begin, end);
    tiles.shape(end - begin, block.rows);
    const int64_t upper = tiles.upper();
    const TileRows rows{weight.at[0], weight.at[0] + upper * k, k, kStepBytes};
    const bool high = block.high == High::kWhole;
    const TileColumns columns{block.lo, high ? block.units.digits : nullptr, word, word * kTileRows};
    tiles.clear(high);
    for (int64_t s = 0; s < whole; ++s) {
        if (b == 0) weight.prefetch_next(s * kStepBytes, k, kPackAhead);
        tiles.add<false>(rows, columns, s);
    }
    if (k % kStepBytes != 0) {  // not past the end of the weight
        alignas(64) int8_t tail[Amx::kColumns][kStepBytes] = {};
        for (int64_t n = 0; n < end - begin; ++n) {
            std::memcpy(tail[n], weight.at[n] + whole * kStepBytes, static_cast<size_t>(k % kStepBytes));
        }
        finish_writing(tail);
        const TileRows last{tail[0], tail[upper], kStepBytes, 0};
        tiles.add<false>(last, columns, whole);
    }
    alignas(64) int32_t low[Amx::kColumns][kTileRows], high_sums[Amx::kColumns][kTileRows];
    tiles.store(low[0], high ? high_sums[0] : nullptr, kTileRows);
    transpose_sums(low, sums.low);
    if (high) transpose_sums(high_sums, sums.high);
}

void direct_rows(const LinearCall& call, int64_t begin, int64_t end) {
    Tiles tiles;
    DirectSums codes, second;
    for (int64_t n = begin; n < end; n += Amx::kColumns) {
        const int64_t last = n + Amx::kColumns < end ? n + Amx::kColumns : end;
        expect_second_digits(call, last, last + Amx::kColumns);
        const ColumnScales<Amx::kColumns> columns(call, n, last);
        for (int64_t b = 0; b < call.rows->blocks(); ++b) {
            const Block& block = call.rows->block(b);
            direct_sums(tiles, call.codes(), b, n, last, codes);
            if (call.p > 0) direct_sums(tiles, call.second_digits(), b, n, last, second);
            finish_rows<Direct>(call, columns, n, last, block.begin, block.rows, codes, second);
        }
    }
}

bool is_direct(const LinearCall& call) {
    return call.rows->m() > Amx::kFewRows && call.rows->m() <= kDirectRows;
}

int64_t amx_scratch_bytes(const LinearCall& call) {
    return is_direct(call) ? 0 : scratch_bytes<Amx>(call);
}

void amx_columns(const LinearCall& call, int64_t begin, int64_t end, void* scratch) {
    if (is_direct(call)) {
        direct_rows(call, begin, end);
    } else {
        linear_columns<Amx>(call, begin, end, scratch);
    }
}

}  // namespace

const KernelTable kAmxTable = {"amx",
                               LLMINT8_CPU_AVX512_VNNI | LLMINT8_CPU_AMX,
                               Amx::kColumns,
                               Amx::layout,
                               amx_scratch_bytes,
                               quantize_row,
                               amx_columns};

}  // namespace llmint8
