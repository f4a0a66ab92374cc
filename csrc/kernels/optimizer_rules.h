// The rules of the optimizers: what a gradient does to the state, and the update that follows. Plain loops
// over one block, vectorised by the compiler; the order of operations is that of
// src/llmint8/reference/optimizers.py.
#pragma once

#include <cmath>

#include "kernels/float_bits.h"
#include "optimizer.h"

namespace llmint8 {
namespace {

// The first constants are common to all rules, the rest belong to the rule.
enum { kDecay, kStep, kCoupledDecay, kUpdateDecay, kFirst };

// In: the state and the gradient. Out: the new state and the update.
struct Tile {
    alignas(64) float p[kOptimizerBlock];
    alignas(64) float g[kOptimizerBlock];
    alignas(64) float u[kOptimizerBlock];
    alignas(64) float s[kMaxStates][kOptimizerBlock];
};

struct Adam {
    static constexpr int kStates = 2;
    static constexpr bool kSigned[kMaxStates] = {true, false, false};
    LLMINT8_NOINLINE static void update(Tile& t, const float* c) {
        const float beta1 = c[0], rest1 = c[1], beta2 = c[2], rest2 = c[3], root = c[4], eps = c[5],
                    mean = c[6];
        for (int64_t i = 0; i < kOptimizerBlock; ++i) {
            const float m = t.s[0][i] * beta1 + t.g[i] * rest1;
            const float v = t.s[1][i] * beta2 + (t.g[i] * rest2) * t.g[i];
            t.u[i] = (m * mean) / (std::sqrt(v) * root + eps);
            t.s[0][i] = m;
            t.s[1][i] = v;
        }
    }
};

struct Ademamix {
    static constexpr int kStates = 3;
    static constexpr bool kSigned[kMaxStates] = {true, true, false};
    LLMINT8_NOINLINE static void update(Tile& t, const float* c) {
        const float beta1 = c[0], rest1 = c[1], beta2 = c[2], rest2 = c[3], root = c[4], eps = c[5],
                    mean = c[6];
        const float beta3 = c[7], rest3 = c[8], alpha = c[9];
        for (int64_t i = 0; i < kOptimizerBlock; ++i) {
            const float fast = t.s[0][i] * beta1 + t.g[i] * rest1;
            const float slow = t.s[1][i] * beta3 + t.g[i] * rest3;
            const float v = t.s[2][i] * beta2 + (t.g[i] * rest2) * t.g[i];
            t.u[i] = (fast * mean + slow * alpha) / (std::sqrt(v) * root + eps);
            t.s[0][i] = fast;
            t.s[1][i] = slow;
            t.s[2][i] = v;
        }
    }
};

struct Lion {
    static constexpr int kStates = 1;
    static constexpr bool kSigned[kMaxStates] = {true, false, false};
    LLMINT8_NOINLINE static void update(Tile& t, const float* c) {
        const float beta1 = c[0], rest1 = c[1], beta2 = c[2], rest2 = c[3];
        for (int64_t i = 0; i < kOptimizerBlock; ++i) {
            const float mixed = t.s[0][i] * beta1 + t.g[i] * rest1;
            const float sign = mixed > 0.0f ? 1.0f : (mixed < 0.0f ? -1.0f : 0.0f);
            t.u[i] = mixed == mixed ? sign : mixed;
            t.s[0][i] = t.s[0][i] * beta2 + t.g[i] * rest2;
        }
    }
};

struct Momentum {
    static constexpr int kStates = 1;
    static constexpr bool kSigned[kMaxStates] = {true, false, false};
    LLMINT8_NOINLINE static void update(Tile& t, const float* c) {
        const float momentum = c[0], weight = c[1], of_gradient = c[2], of_buffer = c[3];
        for (int64_t i = 0; i < kOptimizerBlock; ++i) {
            const float buffer = t.s[0][i] * momentum + t.g[i] * weight;
            t.u[i] = t.g[i] * of_gradient + buffer * of_buffer;
            t.s[0][i] = buffer;
        }
    }
};

struct Rmsprop {
    static constexpr int kStates = 1;
    static constexpr bool kSigned[kMaxStates] = {false, false, false};
    LLMINT8_NOINLINE static void update(Tile& t, const float* c) {
        const float alpha = c[0], rest = c[1], eps = c[2];
        for (int64_t i = 0; i < kOptimizerBlock; ++i) {
            const float v = t.s[0][i] * alpha + (t.g[i] * rest) * t.g[i];
            t.u[i] = t.g[i] / (std::sqrt(v) + eps);
            t.s[0][i] = v;
        }
    }
};

struct RmspropMomentum {
    static constexpr int kStates = 2;
    static constexpr bool kSigned[kMaxStates] = {false, true, false};
    LLMINT8_NOINLINE static void update(Tile& t, const float* c) {
        Rmsprop::update(t, c);
        const float momentum = c[3];
        for (int64_t i = 0; i < kOptimizerBlock; ++i) {
            t.u[i] = t.s[1][i] * momentum + t.u[i];
            t.s[1][i] = t.u[i];
        }
    }
};

struct Adagrad {
    static constexpr int kStates = 1;
    static constexpr bool kSigned[kMaxStates] = {false, false, false};
    LLMINT8_NOINLINE static void update(Tile& t, const float* c) {
        const float eps = c[0];
        for (int64_t i = 0; i < kOptimizerBlock; ++i) {
            const float sum = t.s[0][i] + t.g[i] * t.g[i];
            t.u[i] = t.g[i] / (std::sqrt(sum) + eps);
            t.s[0][i] = sum;
        }
    }
};

}  // namespace
}  // namespace llmint8
