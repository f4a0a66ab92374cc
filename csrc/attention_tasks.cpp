#include "attention_tasks.h"

#include <algorithm>

namespace llmint8 {

namespace {

constexpr int64_t kProductsPerThread = 1 << 16;  // below these, waking threads costs more than it saves
// Keys and values are read once for all rows of a task, but the rows' scores should stay in a cache.
constexpr int64_t kAttentionRows = 96, kScoreBytes = 1 << 20;

}  // namespace

AttentionTasks::AttentionTasks(const DecoderKernels& kernels, int threads,
                               const std::vector<std::vector<KeyRange>>& ranges, int64_t group,
                               int64_t head_dim, int64_t tokens, int64_t keys)
    : kernels_(kernels), threads_(threads), ranges_(ranges), group_(group) {
    const int64_t rows = std::min(kAttentionRows, kScoreBytes / 4 / keys);
    queries_ = std::max<int64_t>(1, std::min(tokens, rows / group));
    scratch_bytes_ = round_up(kernels.attention_bytes(group * queries_, head_dim, keys), 64);
    scratch_ = allocate(scratch_bytes_ * threads);
}

void AttentionTasks::run(const AttentionCall& call) const {
    const int64_t tiles = (call.tokens + queries_ - 1) / queries_, heads = call.batch * call.heads;
    const int64_t work =
        call.batch * call.tokens * call.heads * call.head_dim * (call.position + call.tokens);
    const int team = work < kProductsPerThread ? 1 : threads_;
    // Each thread takes its share of the heads of every tile.
    const auto run_share = [&](int64_t share, int thread) {
        const int64_t end = heads * (share + 1) / team;
        for (int64_t tile = 0; tile < tiles; ++tile) {
            for (int64_t head = heads * share / team; head < end;) {
                const int64_t next = std::min(end, (head / group_ + 1) * group_);
                run_task(call, head, next, tile, thread);
                head = next;
            }
        }
    };
    // Later queries see more keys: every thread takes each so many-th task, the longest first.
    const auto run_every = [&](int64_t first, int thread) {
        const int64_t groups = heads / group_;
        for (int64_t i = first; i < groups * tiles; i += team) {
            run_task(call, i % groups * group_, (i % groups + 1) * group_, tiles - 1 - i / groups, thread);
        }
    };
    parallel_for(team, 1, team, [&](int64_t first, int64_t end, int thread) {
        for (; first < end; ++first) {
            if (tiles < team) {
                run_share(first, thread);
            } else {
                run_every(first, thread);
            }
        }
    });
}

void AttentionTasks::run_task(const AttentionCall& call, int64_t first, int64_t last, int64_t tile,
                              int thread) const {
    const int64_t b = first / call.heads, head = first % call.heads, t = tile * queries_;
    const int64_t bytes = call.dtype == LLMINT8_FLOAT32 ? 4 : 2;
    const int64_t query = ((b * call.tokens + t) * call.heads + head) * call.head_dim * bytes;
    const int64_t key = (b * call.kv_heads + head / group_) * call.capacity * call.head_dim * bytes;
    const std::vector<KeyRange>& ranges = ranges_[static_cast<size_t>(b)];
    AttentionTask task{};
    task.dtype = call.dtype, task.head_dim = call.head_dim, task.heads = last - first;
    task.queries = std::min(queries_, call.tokens - t);
    task.position = call.position + t, task.window = call.window, task.scaling = call.scaling;
    task.query = static_cast<const char*>(call.query) + query;
    task.out = static_cast<char*>(call.out) + query;
    task.query_stride = call.heads * call.head_dim;
    task.key = static_cast<const char*>(call.keys) + key;
    task.value = static_cast<const char*>(call.values) + key;
    task.ranges = ranges.data(), task.range_count = static_cast<int64_t>(ranges.size());
    kernels_.attend(task, scratch_.get() + thread * scratch_bytes_);
}

}  // namespace llmint8
