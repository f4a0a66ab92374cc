/* llmint8: whole decoders of Llama's kind in one call. The rules of llmint8.h hold; what the numbers mean is
 * docs/numerics.md, "Decoder". */
#ifndef LLMINT8_DECODER_H
#define LLMINT8_DECODER_H

#include "llmint8.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Activations of the gate. */
enum { LLMINT8_SILU = 0, LLMINT8_GELU_TANH = 1, LLMINT8_GELU = 2 };

/* A linear layer. absmax float32 [n] and weight int8 [n, k] as for llmint8_linear, or absmax NULL and weight
 * [n, k] of the decoder's dtype. bias [n] of bias_dtype or NULL. outlier_cols [outliers] ascending and
 * weight_low [n, outliers]: the second weight digit; outliers 0 for none. */
typedef struct {
    const void* weight;
    const float* absmax;
    const void* bias;
    const int32_t* outlier_cols;
    const int8_t* weight_low;
    int64_t n, k, outliers;
    float threshold;
    int32_t bias_dtype;
} llmint8_decoder_linear;

/* A layer. Norms [hidden], q_norm and k_norm [head_dim] or NULL, of the decoder's dtype. window: how many
 * tokens a query sees, itself included; 0 for all before it. */
typedef struct {
    llmint8_decoder_linear q, k, v, o, gate, up, down;
    const void* input_norm;
    const void* q_norm;
    const void* k_norm;
    const void* post_norm;
    int64_t window;
    int64_t activation;
} llmint8_decoder_layer;

/* heads is a multiple of kv_heads, head_dim is even. head NULL: no output head. */
typedef struct {
    const llmint8_decoder_layer* layers;
    const void* norm;
    const llmint8_decoder_linear* head;
    int64_t layer_count, hidden, heads, kv_heads, head_dim;
    float epsilon, scaling;
    int64_t dtype;
} llmint8_decoder;

/* Tokens to run. hidden and out [batch, tokens, hidden]; cos, sin [rotary_batch, tokens, head_dim],
 * rotary_batch being 1 or batch; keys, values: of each layer [batch, kv_heads, capacity, head_dim], of which
 * the first `past` positions are read and the next `tokens` are written; mask [batch, past + tokens], 0 where
 * no token attends, or NULL; logits [batch, last, n] for the last positions, where last is not 0. */
typedef struct {
    const void* hidden;
    const void* cos;
    const void* sin;
    const uint8_t* mask;
    void* const* keys;
    void* const* values;
    void* out;
    void* logits;
    int64_t batch, tokens, past, capacity, rotary_batch, last;
} llmint8_decoder_tokens;

/* All layers, the final norm, and the head for the last positions. Extra memory: activations of 512 tokens,
 * or of one from each sequence if that is more; what llmint8_linear needs for them, or 4 bytes per element of
 * the input of a float layer; and for each thread 4 bytes per key and row of scores (a head of a query), for
 * at most 48 rows and 256 KiB, or for the heads that share keys if that is more. */
LLMINT8_API int32_t llmint8_decode(int32_t isa, int32_t threads, const llmint8_decoder* decoder,
                                   const llmint8_decoder_tokens* tokens);

#ifdef __cplusplus
}
#endif

#endif
