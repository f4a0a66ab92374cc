// The only file that knows threads.
#pragma once

#include <cstdint>
#include <functional>

namespace llmint8 {

// Calls fn(begin, end, thread) on ranges that cover [0, count), with at most `threads` threads, each handed
// whole multiples of `grain` where possible. fn must not throw.
void parallel_for(int64_t count, int64_t grain, int threads,
                  const std::function<void(int64_t begin, int64_t end, int thread)>& fn);

// How many threads parallel_for would use: the size for per-thread memory.
int thread_count(int64_t count, int64_t grain, int threads);

}  // namespace llmint8
