// The columns of a float linear layer, shared among threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "decoder_kernels.h"
#include "parallel.h"

namespace llmint8 {

// Private memory and pieces of work for calls of at most m rows of padded_k floats, and n columns.
class FloatColumns {
  public:
    FloatColumns(const DecoderKernels& kernels, int threads, int64_t m, int64_t padded_k, int64_t n)
        : kernels_(kernels),
          threads_(threads),
          grain_(kernels.float_column_tile *
                 std::max<int64_t>(
                     1, kWorkPerThread / std::max<int64_t>(1, kernels.float_column_tile * m * padded_k))),
          bytes_(round_up(kernels.float_linear_bytes(m, padded_k), 64)),
          scratch_(allocate(bytes_ * thread_count(n, grain_, threads))) {}

    void run(const FloatLinearCall& call) const {
        const int64_t tile = kernels_.float_column_tile;
        parallel_for(call.n, grain_, threads_, [&](int64_t begin, int64_t end, int thread) {
            for (int64_t n = begin; n < end; n += tile) {
                kernels_.float_linear_columns(call, n, std::min(end, n + tile),
                                              scratch_.get() + thread * bytes_);
            }
        });
    }

  private:
    // Below this many multiplications, waking threads costs more than they save.
    static constexpr int64_t kWorkPerThread = 1 << 16;

    const DecoderKernels& kernels_;
    const int threads_;
    const int64_t grain_, bytes_;
    const Buffer scratch_;
};

}  // namespace llmint8
