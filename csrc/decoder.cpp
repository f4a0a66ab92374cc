#include "decoder.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "decoder_kernels.h"
#include "decoder_projections.h"
#include "key_ranges.h"
#include "parallel.h"

namespace llmint8 {

namespace {

constexpr int64_t kChunkRows = 512;  // tokens that run through a layer together
// Below these, waking threads costs more than they save: elements of rows, and products of attention.
constexpr int64_t kElementsPerThread = 1 << 14, kProductsPerThread = 1 << 16;
constexpr int64_t kAttentionRows = 48, kScoreBytes = 256 << 10;

class Run {
  public:
    Run(const KernelTable& kernels, int threads, const llmint8_decoder& decoder,
        const llmint8_decoder_tokens& tokens)
        : kernels_(kernels),
          floats_(decoder_kernels(kernels)),
          threads_(threads),
          decoder_(decoder),
          tokens_(tokens),
          dtype_(static_cast<int>(decoder.dtype)),
          bytes_(dtype_ == LLMINT8_FLOAT32 ? 4 : 2),
          ranges_(key_ranges(tokens.mask, tokens.batch, tokens.past + tokens.tokens)) {
        chunk_ = std::min(tokens.tokens, std::max<int64_t>(1, kChunkRows / tokens.batch));
        query_width_ = decoder.heads * decoder.head_dim;
        key_width_ = decoder.kv_heads * decoder.head_dim;
        for (int64_t i = 0; i < decoder.layer_count; ++i) {
            gate_width_ = std::max(gate_width_, decoder.layers[i].gate.n);
        }
        const int64_t widths[] = {decoder.hidden, decoder.hidden, query_width_, query_width_,
                                  key_width_,     key_width_,     gate_width_,  gate_width_};
        int64_t total = 0;
        for (const int64_t width : widths) total += area(width);
        memory_ = allocate(total);
        uint8_t* at = memory_.get();
        void** const areas[] = {&residual_, &x_, &query_, &rotated_, &key_, &value_, &gate_, &up_};
        for (size_t i = 0; i < std::size(areas); ++i) *areas[i] = at, at += area(widths[i]);
        plan_attention();
        const int64_t d = decoder.head_dim, rows = task_heads_ * task_queries_;
        const int64_t norm = (pad_floats(std::max(decoder.hidden, d)) + pad_floats(d)) * 4;
        scratch_bytes_ = std::max(norm, floats_.attention_bytes(rows, d, tokens.past + tokens.tokens));
        scratch_bytes_ = (scratch_bytes_ + 63) / 64 * 64;
        scratch_ = allocate(scratch_bytes_ * threads);
    }

    void run() {
        for (int64_t begin = 0; begin < tokens_.tokens; begin += chunk_) {
            run_chunk(begin, std::min(chunk_, tokens_.tokens - begin));
        }
        if (decoder_.head != nullptr && tokens_.last > 0) run_head();
    }

  private:
    // How many heads and queries a task of attention takes: keys and values are read once for all of them,
    // but their scores should stay in a cache, and every thread should find a task.
    void plan_attention() {
        const int64_t keys = tokens_.past + tokens_.tokens, group = decoder_.heads / decoder_.kv_heads;
        const int64_t rows = std::min(kAttentionRows, kScoreBytes / 4 / keys);
        task_heads_ = group;
        task_queries_ = std::max<int64_t>(1, std::min(chunk_, rows / group));
        const int64_t tasks =
            tokens_.batch * decoder_.kv_heads * ((chunk_ + task_queries_ - 1) / task_queries_);
        if (tasks < threads_) task_heads_ = 1;
    }

    int64_t area(int64_t width) const { return (tokens_.batch * chunk_ * width * bytes_ + 63) / 64 * 64; }

    const char* at(const void* base, int64_t elements) const {
        return static_cast<const char*>(base) + elements * bytes_;
    }
    char* at(void* base, int64_t elements) const { return static_cast<char*>(base) + elements * bytes_; }

    // Tokens [begin, begin + count) of every sequence.
    void run_chunk(int64_t begin, int64_t count) {
        const int64_t h = decoder_.hidden, rows = tokens_.batch * count;
        for (int64_t b = 0; b < tokens_.batch; ++b) {
            std::memcpy(at(residual_, b * count * h), at(tokens_.hidden, (b * tokens_.tokens + begin) * h),
                        static_cast<size_t>(count * h * bytes_));
        }
        for (int64_t i = 0; i < decoder_.layer_count; ++i) {
            const llmint8_decoder_layer& layer = decoder_.layers[i];
            norm_rows(layer.input_norm, rows, x_);
            project({{layer.q, query_}, {layer.k, key_}, {layer.v, value_}}, x_, rows);
            rotate_rows(i, begin, count);
            attention(i, begin, count);
            project({{layer.o, x_}}, query_, rows);
            add_rows(x_, rows);
            norm_rows(layer.post_norm, rows, x_);
            project({{layer.gate, gate_}, {layer.up, up_}}, x_, rows);
            gate_rows(layer, rows);
            project({{layer.down, x_}}, gate_, rows);
            add_rows(x_, rows);
        }
        norm_rows(decoder_.norm, rows, x_);
        for (int64_t b = 0; b < tokens_.batch; ++b) {
            std::memcpy(at(tokens_.out, (b * tokens_.tokens + begin) * h), at(x_, b * count * h),
                        static_cast<size_t>(count * h * bytes_));
        }
    }

    void run_head() {
        const int64_t h = decoder_.hidden, last = tokens_.last, first = tokens_.tokens - last;
        if (last <= chunk_) {
            for (int64_t b = 0; b < tokens_.batch; ++b) {
                std::memcpy(at(x_, b * last * h), at(tokens_.out, (b * tokens_.tokens + first) * h),
                            static_cast<size_t>(last * h * bytes_));
            }
            project({{*decoder_.head, tokens_.logits}}, x_, tokens_.batch * last);
            return;
        }
        for (int64_t b = 0; b < tokens_.batch; ++b) {
            project({{*decoder_.head, at(tokens_.logits, b * last * decoder_.head->n)}},
                    at(tokens_.out, (b * tokens_.tokens + first) * h), last);
        }
    }

    // Calls body(row, thread) for all rows, which hold `width` elements each.
    template <class Body>
    void for_rows(int64_t rows, int64_t width, const Body& body) const {
        const int64_t grain = std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, width));
        parallel_for(rows, grain, threads_, [&](int64_t begin, int64_t end, int thread) {
            for (int64_t row = begin; row < end; ++row) body(row, thread);
        });
    }

    void norm_rows(const void* weight, int64_t rows, void* to) const {
        const int64_t h = decoder_.hidden;
        for_rows(rows, h, [&](int64_t row, int thread) {
            floats_.rms_norm(dtype_, at(residual_, row * h), weight, h, decoder_.epsilon, wide(thread),
                             at(to, row * h));
        });
    }

    void add_rows(const void* x, int64_t rows) const {
        const int64_t h = decoder_.hidden;
        for_rows(rows, h,
                 [&](int64_t row, int) { floats_.add(dtype_, at(x, row * h), h, at(residual_, row * h)); });
    }

    void gate_rows(const llmint8_decoder_layer& layer, int64_t rows) const {
        const int64_t width = layer.gate.n;
        for_rows(rows, width, [&](int64_t row, int) {
            floats_.gate(dtype_, static_cast<int>(layer.activation), at(up_, row * width), width,
                         at(gate_, row * width));
        });
    }

    // Queries and keys normed where there are norms, and rotated; keys and values into the cache.
    void rotate_rows(int64_t index, int64_t begin, int64_t count) const {
        const llmint8_decoder_layer& layer = decoder_.layers[index];
        const int64_t d = decoder_.head_dim;
        for_rows(tokens_.batch * count, query_width_ + 2 * key_width_, [&](int64_t row, int thread) {
            const int64_t b = row / count, t = begin + row % count;
            const int64_t angle = ((tokens_.rotary_batch > 1 ? b : 0) * tokens_.tokens + t) * d;
            const void *cos = at(tokens_.cos, angle), *sin = at(tokens_.sin, angle);
            const auto rotate = [&](const void* x, const void* norm, void* to) {
                if (norm != nullptr) {
                    void* normed = wide(thread) + pad_floats(d);
                    floats_.rms_norm(dtype_, x, norm, d, decoder_.epsilon, wide(thread), normed);
                    x = normed;
                }
                floats_.rotate(dtype_, x, cos, sin, d, to);
            };
            for (int64_t i = 0; i < query_width_; i += d) {
                const int64_t head = row * query_width_ + i;
                rotate(at(query_, head), layer.q_norm, at(rotated_, head));
            }
            for (int64_t head = 0; head < decoder_.kv_heads; ++head) {
                const int64_t from = row * key_width_ + head * d;
                const int64_t to = ((b * decoder_.kv_heads + head) * tokens_.capacity + tokens_.past + t) * d;
                rotate(at(key_, from), layer.k_norm, at(tokens_.keys[index], to));
                std::memcpy(at(tokens_.values[index], to), at(value_, from), static_cast<size_t>(d * bytes_));
            }
        });
    }

    // Of the rotated queries, into the rows that the query projection left.
    void attention(int64_t index, int64_t begin, int64_t count) const {
        const int64_t d = decoder_.head_dim, position = tokens_.past + begin;
        const int64_t groups = decoder_.heads / task_heads_, kv_group = decoder_.heads / decoder_.kv_heads;
        const int64_t tiles = (count + task_queries_ - 1) / task_queries_;
        const int64_t work = tokens_.batch * count * query_width_ * (position + count);
        const int team = work < kProductsPerThread ? 1 : threads_;
        // Later queries see more keys: every thread takes each so many-th task, the longest first.
        const auto run_task = [&](int64_t i, int thread) {
            const int64_t b = i / groups % tokens_.batch, head = i % groups * task_heads_;
            const int64_t t = (tiles - 1 - i / (groups * tokens_.batch)) * task_queries_;
            const int64_t query = (b * count + t) * query_width_ + head * d;
            const int64_t key = (b * decoder_.kv_heads + head / kv_group) * tokens_.capacity * d;
            const auto& ranges = ranges_[static_cast<size_t>(b)];
            AttentionTask task{};
            task.dtype = dtype_, task.head_dim = d, task.heads = task_heads_;
            task.queries = std::min(task_queries_, count - t);
            task.position = position + t, task.window = decoder_.layers[index].window;
            task.scaling = decoder_.scaling;
            task.query = at(rotated_, query), task.out = at(query_, query), task.query_stride = query_width_;
            task.key = at(tokens_.keys[index], key), task.value = at(tokens_.values[index], key);
            task.ranges = ranges.data(), task.range_count = static_cast<int64_t>(ranges.size());
            floats_.attend(task, wide(thread));
        };
        parallel_for(team, 1, team, [&](int64_t first, int64_t end, int thread) {
            for (; first < end; ++first) {
                for (int64_t i = first; i < groups * tokens_.batch * tiles; i += team) run_task(i, thread);
            }
        });
    }

    void project(std::initializer_list<Projection> projections, const void* x, int64_t m) const {
        llmint8::project(kernels_, threads_, dtype_, projections, m, x);
    }

    float* wide(int thread) const {
        return reinterpret_cast<float*>(scratch_.get() + thread * scratch_bytes_);
    }

    const KernelTable& kernels_;
    const DecoderKernels& floats_;
    const int threads_;
    const llmint8_decoder& decoder_;
    const llmint8_decoder_tokens& tokens_;
    const int dtype_;
    const int64_t bytes_;
    const std::vector<std::vector<KeyRange>> ranges_;
    int64_t chunk_, query_width_, key_width_, gate_width_ = 0;
    int64_t task_heads_, task_queries_;  // of one task of attention
    int64_t scratch_bytes_;
    Buffer memory_, scratch_;
    void *residual_, *x_, *query_, *rotated_, *key_, *value_, *gate_, *up_;
};

}  // namespace

void decode(const KernelTable& kernels, int threads, const llmint8_decoder& decoder,
            const llmint8_decoder_tokens& tokens) {
    if (tokens.batch == 0 || tokens.tokens == 0) return;
    Run(kernels, threads, decoder, tokens).run();
}

}  // namespace llmint8
