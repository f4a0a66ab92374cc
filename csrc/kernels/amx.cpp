// AMX: a tile register holds 16 rows of 64 bytes, and one instruction multiplies 16 rows of 64 digits by 64
// codes of 16 columns, with int32 sums. Few rows, and outliers that each row has for itself, are AVX-512
// VNNI's, on the same panels: unsigned codes, whose offset the row's digit sum undoes.
#if defined(LLMINT8_EMULATE_AMX)
#include <emulated_amx.h>  // the same source on any CPU, for tests
#endif

#include "kernels/avx512vnni.h"

namespace llmint8 {
namespace {

// Rows and bytes of a row of each tile register, as the instruction reads them.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// Registers: sums of up to 16 rows by 16 columns in each quarter of a block, digits of its upper and lower
// rows, codes of the left and right half of a panel. Macros: GCC makes the register's name of the argument.
#define UPPER_LEFT 0
#define UPPER_RIGHT 1
#define LOWER_LEFT 2
#define LOWER_RIGHT 3
#define UPPER 4
#define LOWER 5
#define LEFT 6
#define RIGHT 7

constexpr int kTileRows = 16;
constexpr int64_t kStepBytes = 64;  // digits that one instruction multiplies

struct Amx : Avx512Vnni {
    static constexpr int kMaxRows = 2 * kTileRows;
    static constexpr int kPanels = 4;
    static constexpr int64_t kGroup = kStepBytes;
    // A listed word of a block must be copied from the panel; one of a row takes two instructions, and in
    // the dense product shares one with fifteen words and rows.
    static constexpr double kSharedCost = 2.2, kOwnCost = 20.0;

    // The registers of this thread, shaped for blocks of so many rows.
    class Unit {
      public:
        Unit() = default;
        Unit(const Unit&) = delete;
        Unit& operator=(const Unit&) = delete;
        ~Unit() {
            if (rows_ != 0) _tile_release();
        }

        void shape(int64_t rows) {
            if (rows == rows_) return;
            rows_ = rows;
            TileShapes shapes;
            for (int t = 0; t < 8; ++t) shapes.row_bytes[t] = kStepBytes, shapes.rows[t] = kTileRows;
            const auto above = static_cast<uint8_t>(upper()), below = static_cast<uint8_t>(rows - upper());
            shapes.rows[UPPER_LEFT] = shapes.rows[UPPER_RIGHT] = shapes.rows[UPPER] = above;
            if (below > 0) shapes.rows[LOWER_LEFT] = shapes.rows[LOWER_RIGHT] = shapes.rows[LOWER] = below;
            _tile_loadconfig(&shapes);
        }

        // Rows in the upper tiles: all if they fit, else half.
        int64_t upper() const { return rows_ <= kTileRows ? rows_ : (rows_ + 1) / 2; }
        bool has_lower() const { return rows_ > kTileRows; }

      private:
        int64_t rows_ = 0;
    };

    // Sums of a block over `steps` groups of digits. panel_of: from a group to its codes, [word][32][4].
    template <class PanelOf>
    static void steps(Unit& unit, int64_t rows, const PanelOf& panel_of, const int8_t* digits, int64_t steps,
                      int32_t (*sums)[kColumns]) {
        constexpr int64_t kPanelRow = kWordBytes * kColumns, kHalf = kPanelRow / 2;
        constexpr int64_t kSumsRow = kColumns * static_cast<int64_t>(sizeof(int32_t));
        unit.shape(rows);
        const int64_t upper = unit.upper();
        const bool has_lower = unit.has_lower();
        _tile_zero(UPPER_LEFT);
        _tile_zero(UPPER_RIGHT);
        if (has_lower) {
            _tile_zero(LOWER_LEFT);
            _tile_zero(LOWER_RIGHT);
        }
        for (int64_t s = 0; s < steps; ++s, digits += rows * kStepBytes) {
            const uint8_t* panel = panel_of(s);
            _tile_loadd(UPPER, digits, kStepBytes);
            _tile_loadd(LEFT, panel, kPanelRow);
            _tile_dpbsud(UPPER_LEFT, UPPER, LEFT);
            _tile_loadd(RIGHT, panel + kHalf, kPanelRow);
            _tile_dpbsud(UPPER_RIGHT, UPPER, RIGHT);
            if (!has_lower) continue;
            _tile_loadd(LOWER, digits + upper * kStepBytes, kStepBytes);
            _tile_dpbsud(LOWER_LEFT, LOWER, LEFT);
            _tile_dpbsud(LOWER_RIGHT, LOWER, RIGHT);
        }
        _tile_stored(UPPER_LEFT, sums[0], kSumsRow);
        _tile_stored(UPPER_RIGHT, sums[0] + kTileRows, kSumsRow);
        if (has_lower) {
            _tile_stored(LOWER_LEFT, sums[upper], kSumsRow);
            _tile_stored(LOWER_RIGHT, sums[upper] + kTileRows, kSumsRow);
        }
    }

    static void block(Unit& unit, int64_t rows, const uint8_t* panel, const void* digits, int64_t words,
                      int32_t (*sums)[kColumns]) {
        steps(
            unit, rows, [&](int64_t s) { return panel + s * kStepBytes * kColumns; },
            static_cast<const int8_t*>(digits), (words * kWordBytes + kStepBytes - 1) / kStepBytes, sums);
    }

    static void block_units(Unit& unit, int64_t rows, const uint8_t* panel, const HighUnits& units,
                            int32_t (*sums)[kColumns]) {
        constexpr int64_t kWords = kStepBytes / kWordBytes, kPanelRow = kWordBytes * kColumns;
        alignas(64) uint8_t gathered[2][kWords * kPanelRow];  // two: one is read while the other is written
        const auto gather = [&](int64_t s) {
            uint8_t* to = gathered[s % 2];
            for (int64_t u = s * kWords; u < (s + 1) * kWords; ++u, to += kPanelRow) {
                // Past the last word: any, for the digits there are zero.
                const uint8_t* from = panel + units.index[u < units.count ? u : 0] * kPanelRow;
                _mm512_store_si512(to, _mm512_load_si512(from));
                _mm512_store_si512(to + 64, _mm512_load_si512(from + 64));
            }
            return static_cast<const uint8_t*>(gathered[s % 2]);
        };
        steps(unit, rows, gather, static_cast<const int8_t*>(units.digits),
              (units.count + kWords - 1) / kWords, sums);
    }
};

}  // namespace

const KernelTable kAmxTable = make_table<Amx>("amx", LLMINT8_CPU_AVX512_VNNI | LLMINT8_CPU_AMX_INT8);

}  // namespace llmint8
