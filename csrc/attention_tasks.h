// Attention of all heads of all sequences, as tasks for a kernel and threads.
#pragma once

#include <cstdint>
#include <vector>

#include "decoder_kernels.h"
#include "key_ranges.h"
#include "parallel.h"

namespace llmint8 {

struct AttentionCall {
    int dtype;
    int64_t batch, heads, kv_heads, head_dim;
    int64_t tokens;    // of each sequence
    int64_t position;  // of the first of them among the keys
    int64_t window;    // as in AttentionTask
    float scaling;
    const void* query;          // [batch, tokens, heads, head_dim]
    const void *keys, *values;  // [batch, kv_heads, capacity, head_dim]
    int64_t capacity;
    void* out;  // laid out as the queries
};

class AttentionTasks {
  public:
    // For up to `tokens` queries of each sequence over up to `keys` keys. ranges: of each sequence.
    AttentionTasks(const DecoderKernels& kernels, int threads,
                   const std::vector<std::vector<KeyRange>>& ranges, int64_t group, int64_t head_dim,
                   int64_t tokens, int64_t keys);

    void run(const AttentionCall& call) const;

  private:
    // Heads [first, last) of all sequences, which share their keys, for a tile of queries.
    void run_task(const AttentionCall& call, int64_t first, int64_t last, int64_t tile, int thread) const;

    const DecoderKernels& kernels_;
    const int threads_;
    const std::vector<std::vector<KeyRange>>& ranges_;
    int64_t group_, queries_;  // heads that share keys; queries of a task
    int64_t scratch_bytes_;
    Buffer scratch_;
};

}  // namespace llmint8
