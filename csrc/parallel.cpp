// OpenMP, because torch's wheels carry libgomp under its plain name: loaded after torch, this library shares
// torch's threads instead of fighting them for the cores.
#include "parallel.h"

#include <algorithm>

#if defined(_OPENMP)
#include <pthread.h>

#include <atomic>
#endif

namespace llmint8 {

#if defined(_OPENMP)
namespace {

// libgomp's threads do not survive fork(), and a team that waits for them in the child hangs for ever.
std::atomic<bool> forked{false};
const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace
#endif

int thread_count(int64_t count, int64_t grain, int threads) {
#if defined(_OPENMP)
    if (registered != 0 || forked) return 1;
    const int64_t pieces = (count + grain - 1) / grain;
    return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, pieces)));
#else
    (void)count, (void)grain, (void)threads;
    return 1;
#endif
}

void parallel_for(int64_t count, int64_t grain, int threads,
                  const std::function<void(int64_t, int64_t, int)>& fn) {
    const int team = thread_count(count, grain, threads);
    const int64_t pieces = (count + grain - 1) / grain;
    const auto share = [&](int thread) {
        const int64_t begin = pieces * thread / team * grain;
        const int64_t end = std::min(count, pieces * (thread + 1) / team * grain);
        if (begin < end) fn(begin, end, thread);
    };
    if (team == 1) {
        share(0);
        return;
    }
#if defined(_OPENMP)
#pragma omp parallel for num_threads(team) schedule(static, 1)
    for (int thread = 0; thread < team; ++thread) share(thread);
#endif
}

}  // namespace llmint8
