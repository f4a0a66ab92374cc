// The tile registers of AMX: each holds 16 rows of 64 bytes, and one instruction multiplies 16 rows of 64
// bytes by 64 bytes of 16 columns, with int32 sums. Four of them hold sums, in 2 x 2 quarters. Internal
// linkage, as in float_bits.h and for the same reason.
#pragma once

#if defined(LLMINT8_EMULATE_AMX)
#include <emulated_amx.h>  // the same source on any CPU, for tests
#else
#include <immintrin.h>
#endif

#include "kernels/ahead.h"
#include "quantized_rows.h"

namespace llmint8 {
namespace {

constexpr int kTileRows = 16;
constexpr int64_t kStepBytes = 64;  // of k, that one instruction multiplies

// Numbers of the registers: sums, two tiles of rows, two of columns. Macros: GCC pastes them into names.
#define UPPER_LEFT 0
#define UPPER_RIGHT 1
#define LOWER_LEFT 2
#define LOWER_RIGHT 3
#define UPPER 4
#define LOWER 5
#define LEFT 6
#define RIGHT 7

// Where steps find their rows, [row][64]: the upper ones, and the lower ones if there are any.
struct TileRows {
    const void* upper;
    const void* lower;
    int64_t row, step;  // bytes from one to the next
};

// The same for columns, [word of k][column][4].
struct TileColumns {
    const void* left;
    const void* right;  // null: none
    int64_t word, step;
};

// GCC does not know that the instructions read memory: what they read must be written by now.
LLMINT8_INLINE void finish_writing(const void* memory) {
    asm volatile("" : : "r"(memory) : "memory");
}

// Shapes of the registers, as the instruction reads them.
struct alignas(64) TileConfig {
    void set(int tile, uint8_t count, uint16_t bytes) { rows[tile] = count, row_bytes[tile] = bytes; }

    void load() const {
        finish_writing(this);
        _tile_loadconfig(this);
    }

    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// The tile registers of this thread. Rows are weights or digits as they lie (signed), columns are digits
// (signed) or the unsigned codes of a panel.
class Tiles {
  public:
    Tiles() = default;
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
    ~Tiles() {
        if (rows_ != 0) _tile_release();
    }

    // Memory that is to be fetched during the next steps.
    void expect(const void* from, int64_t bytes, int64_t steps) { digits_ = {from, bytes, steps}; }
    void expect_weight(const void* from, int64_t bytes, int64_t steps) { weight_ = {from, bytes, steps}; }
    LLMINT8_INLINE void fetch() {
        digits_.step();
        weight_.step();
    }

    // For up to 32 rows, and twice up to 16 columns.
    void shape(int64_t rows, int64_t columns) {
        if (rows == rows_ && columns == columns_) return;
        rows_ = rows, columns_ = columns;
        TileConfig config;
        const auto above = static_cast<uint8_t>(upper()), below = static_cast<uint8_t>(rows - upper());
        const auto sums = static_cast<uint16_t>(columns * 4);
        config.set(UPPER_LEFT, above, sums), config.set(UPPER_RIGHT, above, sums);
        config.set(UPPER, above, kStepBytes);
        if (below > 0) {
            config.set(LOWER_LEFT, below, sums), config.set(LOWER_RIGHT, below, sums);
            config.set(LOWER, below, kStepBytes);
        }
        config.set(LEFT, kTileRows, sums), config.set(RIGHT, kTileRows, sums);
        config.load();
    }

    // Rows in the upper tiles: all if they fit, else half.
    int64_t upper() const { return rows_ <= kTileRows ? rows_ : (rows_ + 1) / 2; }
    bool has_lower() const { return rows_ > kTileRows; }

    void clear(bool right) const {
        _tile_zero(UPPER_LEFT);
        if (right) _tile_zero(UPPER_RIGHT);
        if (!has_lower()) return;
        _tile_zero(LOWER_LEFT);
        if (right) _tile_zero(LOWER_RIGHT);
    }

    // Adds the products of one step.
    template <bool kUnsignedColumns>
    LLMINT8_INLINE void add(const TileRows& a, const TileColumns& b, int64_t step) const {
        const auto at = [step](const void* from, int64_t bytes) {
            return static_cast<const uint8_t*>(from) + step * bytes;
        };
        const bool right = b.right != nullptr;
        _tile_loadd(UPPER, at(a.upper, a.step), a.row);
        _tile_loadd(LEFT, at(b.left, b.step), b.word);
        if (kUnsignedColumns) {
            _tile_dpbsud(UPPER_LEFT, UPPER, LEFT);
        } else {
            _tile_dpbssd(UPPER_LEFT, UPPER, LEFT);
        }
        if (right) {
            _tile_loadd(RIGHT, at(b.right, b.step), b.word);
            if (kUnsignedColumns) {
                _tile_dpbsud(UPPER_RIGHT, UPPER, RIGHT);
            } else {
                _tile_dpbssd(UPPER_RIGHT, UPPER, RIGHT);
            }
        }
        if (!has_lower()) return;
        _tile_loadd(LOWER, at(a.lower, a.step), a.row);
        if (kUnsignedColumns) {
            _tile_dpbsud(LOWER_LEFT, LOWER, LEFT);
            if (right) _tile_dpbsud(LOWER_RIGHT, LOWER, RIGHT);
        } else {
            _tile_dpbssd(LOWER_LEFT, LOWER, LEFT);
            if (right) _tile_dpbssd(LOWER_RIGHT, LOWER, RIGHT);
        }
    }

    // What store() has left.
    void load(const int32_t* left, const int32_t* right, int64_t stride) const {
        const int64_t bytes = stride * 4, below = upper() * stride;
        _tile_loadd(UPPER_LEFT, left, bytes);
        _tile_loadd(UPPER_RIGHT, right, bytes);
        if (!has_lower()) return;
        _tile_loadd(LOWER_LEFT, left + below, bytes);
        _tile_loadd(LOWER_RIGHT, right + below, bytes);
    }

    // Sums of all rows, `stride` of them from one row to the next. right: null if there are none.
    void store(int32_t* left, int32_t* right, int64_t stride) const {
        const int64_t bytes = stride * 4, below = upper() * stride;
        _tile_stored(UPPER_LEFT, left, bytes);
        if (right != nullptr) _tile_stored(UPPER_RIGHT, right, bytes);
        if (!has_lower()) return;
        _tile_stored(LOWER_LEFT, left + below, bytes);
        if (right != nullptr) _tile_stored(LOWER_RIGHT, right + below, bytes);
    }

  private:
    int64_t rows_ = 0, columns_ = 0;
    Ahead digits_, weight_;
};

}  // namespace
}  // namespace llmint8
