/* llmint8: the C interface of the CPU kernels. No torch, no Python, no global state.
 *
 * All matrices are row-major and contiguous. Every function that returns an int status returns 0, or a
 * negative number after which llmint8_last_error() describes the failure (per thread).
 * What the numbers mean: docs/numerics.md. Every instruction set returns the same bits.
 */
#ifndef LLMINT8_H
#define LLMINT8_H

#include <stdint.h>

#if defined(__GNUC__)
#define LLMINT8_API __attribute__((visibility("default")))
#else
#define LLMINT8_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever a signature below changes. */
#define LLMINT8_ABI_VERSION 2

/* Element types of activations, outputs and biases. */
enum { LLMINT8_FLOAT32 = 0, LLMINT8_FLOAT16 = 1, LLMINT8_BFLOAT16 = 2 };

/* Bits of llmint8_cpu_features(). */
enum {
    LLMINT8_CPU_AVX2 = 1,
    LLMINT8_CPU_AVX512_VNNI = 2,
    LLMINT8_CPU_AVXVNNI = 4,
    LLMINT8_CPU_NEON = 8,
    LLMINT8_CPU_NEON_DOTPROD = 16,
    LLMINT8_CPU_AMX = 32
};

LLMINT8_API int32_t llmint8_abi_version(void);

/* What went wrong in the last failed call on this thread; empty if nothing did. */
LLMINT8_API const char* llmint8_last_error(void);

/* What this CPU and its operating system offer, as LLMINT8_CPU_* bits. On Linux the process is allowed the
 * registers of AMX by this, if it is not yet. */
LLMINT8_API uint32_t llmint8_cpu_features(void);

/* The instruction sets this library was built with, slowest first: "scalar", then on x86-64 "avx2", "avxvnni"
 * (if the compiler knows it), "avx512vnni", "amx" (likewise), on 64-bit ARM "neon", "neondot". */
LLMINT8_API int32_t llmint8_isa_count(void);
LLMINT8_API const char* llmint8_isa_name(int32_t isa);

/* Whether a CPU with these feature bits can run an instruction set (1 or 0), and the best one for it. */
LLMINT8_API int32_t llmint8_isa_supported(int32_t isa, uint32_t features);
LLMINT8_API int32_t llmint8_best_isa(uint32_t features);

/* Quantise activations, one scale per row.
 * x [m, k] of dtype; q int16 [m, k]; row_scale float32 [m] (0: zero row, NaN: non-finite row).
 * threshold: 0 none, > 0 outlier from that magnitude on, < 0 the automatic rule. k <= 131072. */
LLMINT8_API int32_t llmint8_quantize_rows(int32_t isa, int32_t threads, int32_t dtype, int64_t m, int64_t k,
                                          const void* x, float threshold, int16_t* q, float* row_scale);

/* y = x W^T + bias with an int8 weight.
 * x [m, k] and y [m, n] of dtype; weight int8 [n, k] within +-127; absmax float32 [n];
 * bias [n] of bias_dtype or NULL. k <= 131072.
 * A second digit for p columns of the weight, 0 for none: outlier_cols int32 [p], each within [0, k), and
 * weight_low int8 [n, p].
 * Extra memory: 4 bytes per element of x, but never more than for 256 rows or 8 MiB, whichever is more;
 * 32 bytes per column of x and thread, with AMX and many rows up to four times that or 1 MiB, whichever is
 * less, but not less than once; a constant per row; outlier columns count as more columns of x. */
LLMINT8_API int32_t llmint8_linear(int32_t isa, int32_t threads, int32_t dtype, int32_t bias_dtype, int64_t m,
                                   int64_t k, int64_t n, const void* x, const int8_t* weight,
                                   const float* absmax, const void* bias, float threshold, int64_t p,
                                   const int32_t* outlier_cols, const int8_t* weight_low, void* y);

/* Rules of llmint8_optimizer_step, and the constants that each takes after the four common ones:
 * decay (of the weights), step, coupled decay (into the gradient), update decay (into the update). */
enum {
    LLMINT8_RULE_ADAM = 0,             /* beta1, 1 - beta1, beta2, 1 - beta2, root, eps, mean */
    LLMINT8_RULE_ADEMAMIX = 1,         /* as Adam's, then beta3, 1 - beta3, alpha */
    LLMINT8_RULE_LION = 2,             /* beta1, 1 - beta1, beta2, 1 - beta2 */
    LLMINT8_RULE_MOMENTUM = 3,         /* momentum, weight of the gradient, two weights of the update */
    LLMINT8_RULE_RMSPROP = 4,          /* alpha, 1 - alpha, eps */
    LLMINT8_RULE_RMSPROP_MOMENTUM = 5, /* alpha, 1 - alpha, eps, momentum */
    LLMINT8_RULE_ADAGRAD = 6           /* eps */
};

/* One step of an optimizer on `count` weights, in blocks of 256 (docs/optimizers.md).
 * p [count] of dtype, updated in place; g [count] of grad_dtype. state1 to state3, as many as the rule has,
 * updated in place: uint8 codes [count] with their absmax float32 [blocks], or float32 [count] where the
 * absmax is NULL. norms NULL, or double [blocks, 2]: then nothing is updated, and it receives each block's
 * sums of squares of the weights and of the update. */
LLMINT8_API int32_t llmint8_optimizer_step(int32_t isa, int32_t threads, int32_t dtype, int32_t grad_dtype,
                                           int32_t rule, int64_t count, void* p, const void* g, void* state1,
                                           void* state2, void* state3, float* absmax1, float* absmax2,
                                           float* absmax3, const float* constants, double* norms);

/* The gradient of llmint8_linear with respect to x: grad_input = grad W, W with its second digit if it has
 * one. grad [m, n] and grad_input [m, k] of dtype; the weight as in llmint8_linear. Sums are float32, in
 * ascending order of the output features. Extra memory: 4 bytes per element of grad for at most 240 rows; 62
 * KiB, or 4 bytes per output feature if that is more, per thread. */
LLMINT8_API int32_t llmint8_input_gradient(int32_t isa, int32_t threads, int32_t dtype, int64_t m, int64_t k,
                                           int64_t n, const void* grad, const int8_t* weight,
                                           const float* absmax, int64_t p, const int32_t* outlier_cols,
                                           const int8_t* weight_low, void* grad_input);

/* The first `count` elements of a 4-bit weight, as dtype. codes uint8 [ceil(count / 2)], two elements a byte,
 * the first in its upper half; book float32 [16], their values; block: elements that share a scale. absmax
 * float32 [blocks] with absmax_codes NULL; or absmax float32 [ceil(blocks / 256)] and absmax_codes uint8
 * [blocks], the scale being nested_book[code] * absmax + offset. */
LLMINT8_API int32_t llmint8_dequantize_4bit(int32_t isa, int32_t threads, int32_t dtype, int64_t count,
                                            const uint8_t* codes, const float* book, int64_t block,
                                            const float* absmax, const uint8_t* absmax_codes,
                                            const float* nested_book, float offset, void* out);

/* y = x W^T + bias with a 4-bit weight [n, k], given as above: products and sums in float32, in the order of
 * docs/numerics.md, "Decoder". x [m, k] and y [m, n] of dtype; bias [n] of bias_dtype or NULL. Extra memory:
 * 4 bytes per element of x for at most 12 rows or 192 KiB, whichever is more; 16 bytes per column of x and
 * thread. */
LLMINT8_API int32_t llmint8_linear_4bit(int32_t isa, int32_t threads, int32_t dtype, int32_t bias_dtype,
                                        int64_t m, int64_t k, int64_t n, const void* x, const uint8_t* codes,
                                        const float* book, int64_t block, const float* absmax,
                                        const uint8_t* absmax_codes, const float* nested_book, float offset,
                                        const void* bias, void* y);

#ifdef __cplusplus
}
#endif

#endif
