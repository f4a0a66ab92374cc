// The AMX instructions of kernels/amx.cpp in plain C++, as Intel's manual (SDM volume 2) describes them: for
// tests on CPUs without AMX.
#pragma once

#include <cstdint>
#include <cstring>

namespace emulated_amx {

struct Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

struct Tile {
    int rows, row_bytes;
    uint8_t row[16][64];
};

inline Tile* tiles() {
    static thread_local Tile all[8];
    return all;
}

inline void load_config(const void* from) {
    Config config;
    std::memcpy(&config, from, sizeof config);
    for (int t = 0; t < 8; ++t) tiles()[t] = {config.rows[t], config.row_bytes[t], {}};
}

inline void release() {
    for (int t = 0; t < 8; ++t) tiles()[t] = {};
}

inline void zero(int t) {
    std::memset(tiles()[t].row, 0, sizeof tiles()[t].row);
}

inline void load(int t, const void* from, int64_t stride) {
    zero(t);
    Tile& tile = tiles()[t];
    for (int r = 0; r < tile.rows; ++r) {
        std::memcpy(tile.row[r], static_cast<const char*>(from) + r * stride,
                    static_cast<size_t>(tile.row_bytes));
    }
}

inline void store(int t, void* to, int64_t stride) {
    const Tile& tile = tiles()[t];
    for (int r = 0; r < tile.rows; ++r) {
        std::memcpy(static_cast<char*>(to) + r * stride, tile.row[r], static_cast<size_t>(tile.row_bytes));
    }
}

// Signed bytes of a by signed or unsigned bytes of b, fours summed.
template <class Right>
inline void multiply(int sums, int left, int right) {
    Tile &c = tiles()[sums], &a = tiles()[left], &b = tiles()[right];
    for (int m = 0; m < c.rows; ++m) {
        for (int n = 0; n < c.row_bytes / 4; ++n) {
            uint32_t sum;
            std::memcpy(&sum, c.row[m] + 4 * n, 4);
            for (int k = 0; k < a.row_bytes; ++k) {
                const int product =
                    static_cast<int8_t>(a.row[m][k]) * static_cast<Right>(b.row[k / 4][4 * n + k % 4]);
                sum += static_cast<uint32_t>(product);
            }
            std::memcpy(c.row[m] + 4 * n, &sum, 4);
        }
    }
}

inline float bfloat(const uint8_t* from) {
    uint16_t half;
    std::memcpy(&half, from, 2);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// Pairs of bfloat16 of a by those of b: the first of each pair in one chain of sums, the second in another.
// Products are exact, so that a fused sum is rounded as this one. Subnormal numbers do not occur.
inline void multiply_bfloats(int sums, int left, int right) {
    Tile &c = tiles()[sums], &a = tiles()[left], &b = tiles()[right];
    for (int m = 0; m < c.rows; ++m) {
        for (int n = 0; n < c.row_bytes / 4; ++n) {
            float first = 0.0f, second = 0.0f, sum;
            for (int k = 0; k < a.row_bytes / 4; ++k) {
                first += bfloat(a.row[m] + 4 * k) * bfloat(b.row[k] + 4 * n);
                second += bfloat(a.row[m] + 4 * k + 2) * bfloat(b.row[k] + 4 * n + 2);
            }
            std::memcpy(&sum, c.row[m] + 4 * n, 4);
            sum += first + second;
            std::memcpy(c.row[m] + 4 * n, &sum, 4);
        }
    }
}

}  // namespace emulated_amx

#define _tile_loadconfig(from) emulated_amx::load_config(from)
#define _tile_release() emulated_amx::release()
#define _tile_zero(t) emulated_amx::zero(t)
#define _tile_loadd(t, from, stride) emulated_amx::load(t, from, stride)
#define _tile_stored(t, to, stride) emulated_amx::store(t, to, stride)
#define _tile_dpbsud(sums, a, b) emulated_amx::multiply<uint8_t>(sums, a, b)
#define _tile_dpbssd(sums, a, b) emulated_amx::multiply<int8_t>(sums, a, b)
#define _tile_dpbf16ps(sums, a, b) emulated_amx::multiply_bfloats(sums, a, b)
