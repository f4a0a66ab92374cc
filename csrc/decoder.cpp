#include "decoder.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "attention_tasks.h"
#include "decoder_kernels.h"
#include "decoder_projections.h"
#include "key_ranges.h"
#include "parallel.h"

namespace llmint8 {

namespace {

constexpr int64_t kChunkRows = 512;              // tokens that run through a layer together
constexpr int64_t kElementsPerThread = 1 << 14;  // below these, waking threads costs more than it saves

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
          ranges_(key_ranges(tokens.mask, tokens.batch, tokens.past + tokens.tokens)),
          chunk_(std::min(tokens.tokens, std::max<int64_t>(1, kChunkRows / tokens.batch))),
          attention_(floats_, threads, ranges_, decoder.heads / decoder.kv_heads, decoder.head_dim, chunk_,
                     tokens.past + tokens.tokens) {
        query_width_ = decoder.heads * decoder.head_dim;
        key_width_ = decoder.kv_heads * decoder.head_dim;
        for (int64_t i = 0; i < decoder.layer_count; ++i) {
            gate_width_ = std::max(gate_width_, decoder.layers[i].gate.n);
        }
        const int64_t query = area(query_width_), key = area(key_width_), gate = area(gate_width_);
        const int64_t hidden = area(decoder.hidden);
        memory_ = allocate(2 * hidden + std::max(2 * (query + key), 2 * gate));
        residual_ = memory_.get(), x_ = at_byte(residual_, hidden);
        query_ = at_byte(x_, hidden), rotated_ = at_byte(query_, query);
        key_ = at_byte(rotated_, query), value_ = at_byte(key_, key);
        gate_ = query_, up_ = at_byte(gate_, gate);  // queries, keys and values are done with by then
        const int64_t d = decoder.head_dim;
        norm_bytes_ = (pad_floats(std::max(decoder.hidden, d)) + pad_floats(d)) * 4;
        norm_memory_ = allocate(norm_bytes_ * threads);
    }

    void run() {
        for (int64_t begin = 0; begin < tokens_.tokens; begin += chunk_) {
            run_chunk(begin, std::min(chunk_, tokens_.tokens - begin));
        }
        if (decoder_.head != nullptr && tokens_.last > 0) run_head();
    }

  private:
    int64_t area(int64_t width) const { return round_up(tokens_.batch * chunk_ * width * bytes_, 64); }

    static void* at_byte(void* base, int64_t bytes) { return static_cast<char*>(base) + bytes; }
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
        AttentionCall call{};
        call.dtype = dtype_, call.batch = tokens_.batch, call.heads = decoder_.heads;
        call.kv_heads = decoder_.kv_heads, call.head_dim = decoder_.head_dim;
        call.tokens = count, call.position = tokens_.past + begin;
        call.window = decoder_.layers[index].window, call.scaling = decoder_.scaling;
        call.query = rotated_, call.out = query_;
        call.keys = tokens_.keys[index], call.values = tokens_.values[index];
        call.capacity = tokens_.capacity;
        attention_.run(call);
    }

    void project(std::initializer_list<Projection> projections, const void* x, int64_t m) const {
        llmint8::project(kernels_, threads_, dtype_, projections, m, x);
    }

    float* wide(int thread) const {
        return reinterpret_cast<float*>(norm_memory_.get() + thread * norm_bytes_);
    }

    const KernelTable& kernels_;
    const DecoderKernels& floats_;
    const int threads_;
    const llmint8_decoder& decoder_;
    const llmint8_decoder_tokens& tokens_;
    const int dtype_;
    const int64_t bytes_;
    const std::vector<std::vector<KeyRange>> ranges_;
    const int64_t chunk_;
    const AttentionTasks attention_;
    int64_t query_width_, key_width_, gate_width_ = 0;
    int64_t norm_bytes_;  // of a thread's private memory for norms
    Buffer memory_, norm_memory_;
    void *residual_, *x_, *query_, *rotated_, *key_, *value_, *gate_, *up_;
};

}  // namespace

void decode(const KernelTable& kernels, int threads, const llmint8_decoder& decoder,
            const llmint8_decoder_tokens& tokens) {
    if (tokens.batch == 0 || tokens.tokens == 0) return;
    Run(kernels, threads, decoder, tokens).run();
}

}  // namespace llmint8
