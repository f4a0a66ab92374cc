// Whole decoders for CPUs that cannot run torch, for example under an emulator.
//
//   decoders FILE ISA...
//
// FILE holds decoders, tokens, and the bits that the reference returns for them, made by write_decoders.py.
// The scalar kernels and each ISA named must be had by this CPU and return these bits.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "llmint8_decoder.h"

namespace {

using Bytes = std::vector<uint8_t>;

[[noreturn]] void fail(const std::string& message) {
    std::fprintf(stderr, "decoders: %s\n", message.c_str());
    std::exit(1);
}

// What the file holds, kept for as long as a case is used.
class Reader {
  public:
    explicit Reader(const char* path) : file_(std::fopen(path, "rb")) {
        if (file_ == nullptr) fail(std::string("cannot open ") + path);
    }
    ~Reader() { std::fclose(file_); }

    template <class T>
    T number() {
        T value;
        read(&value, sizeof value);
        return value;
    }
    int64_t integer() { return number<int64_t>(); }

    // A tensor of so many elements.
    void* tensor(int64_t count, int64_t element_bytes) {
        kept_.emplace_back(static_cast<size_t>(count * element_bytes));
        read(kept_.back().data(), kept_.back().size());
        return kept_.back().data();
    }
    template <class T>
    T* tensor(int64_t count) {
        return static_cast<T*>(tensor(count, sizeof(T)));
    }

    void forget() { kept_.clear(); }

  private:
    void read(void* to, size_t bytes) {
        if (std::fread(to, 1, bytes, file_) != bytes) fail("the file ends early");
    }

    std::FILE* file_;
    std::deque<Bytes> kept_;
};

int64_t element_bytes(int64_t dtype) {
    return dtype == LLMINT8_FLOAT32 ? 4 : 2;
}

llmint8_decoder_linear read_linear(Reader& reader, int64_t bytes) {
    llmint8_decoder_linear linear{};
    linear.n = reader.integer(), linear.k = reader.integer();
    const bool quantised = reader.integer() != 0;
    linear.outliers = reader.integer();
    const int64_t bias_dtype = reader.integer();
    linear.threshold = reader.number<float>();
    linear.weight = reader.tensor(linear.n * linear.k, quantised ? 1 : bytes);
    if (quantised) linear.absmax = reader.tensor<float>(linear.n);
    if (bias_dtype >= 0) {
        linear.bias_dtype = static_cast<int32_t>(bias_dtype);
        linear.bias = reader.tensor(linear.n, element_bytes(bias_dtype));
    }
    if (linear.outliers > 0) {
        linear.outlier_cols = reader.tensor<int32_t>(linear.outliers);
        linear.weight_low = reader.tensor<int8_t>(linear.n * linear.outliers);
    }
    return linear;
}

llmint8_decoder_layer read_layer(Reader& reader, const llmint8_decoder& decoder, int64_t bytes) {
    llmint8_decoder_layer layer{};
    layer.window = reader.integer(), layer.activation = reader.integer();
    const bool normed = reader.integer() != 0;
    layer.input_norm = reader.tensor(decoder.hidden, bytes);
    layer.post_norm = reader.tensor(decoder.hidden, bytes);
    if (normed) layer.q_norm = reader.tensor(decoder.head_dim, bytes);
    if (normed) layer.k_norm = reader.tensor(decoder.head_dim, bytes);
    for (auto* linear : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
        *linear = read_linear(reader, bytes);
    }
    return layer;
}

// Reads one case and runs it on every instruction set.
void check(Reader& reader, int64_t index, const std::vector<int32_t>& isas) {
    llmint8_decoder decoder{};
    llmint8_decoder_tokens tokens{};
    for (int64_t* field : {&decoder.dtype, &decoder.layer_count, &decoder.hidden, &decoder.heads,
                           &decoder.kv_heads, &decoder.head_dim, &tokens.batch, &tokens.tokens, &tokens.past,
                           &tokens.capacity, &tokens.rotary_batch, &tokens.last}) {
        *field = reader.integer();
    }
    const bool has_mask = reader.integer() != 0, has_head = reader.integer() != 0;
    decoder.epsilon = reader.number<float>(), decoder.scaling = reader.number<float>();
    const int64_t bytes = element_bytes(decoder.dtype), rows = tokens.batch * tokens.tokens;
    decoder.norm = reader.tensor(decoder.hidden, bytes);
    std::vector<llmint8_decoder_layer> layers;
    for (int64_t i = 0; i < decoder.layer_count; ++i) layers.push_back(read_layer(reader, decoder, bytes));
    decoder.layers = layers.data();
    llmint8_decoder_linear head{};
    if (has_head) head = read_linear(reader, bytes), decoder.head = &head;
    tokens.hidden = reader.tensor(rows * decoder.hidden, bytes);
    const int64_t angles = tokens.rotary_batch * tokens.tokens * decoder.head_dim;
    tokens.cos = reader.tensor(angles, bytes), tokens.sin = reader.tensor(angles, bytes);
    if (has_mask) tokens.mask = reader.tensor<uint8_t>(tokens.batch * (tokens.past + tokens.tokens));

    const size_t caches = static_cast<size_t>(2 * decoder.layer_count);
    const int64_t cache = tokens.batch * decoder.kv_heads * tokens.capacity * decoder.head_dim;
    std::vector<void*> given, want;
    for (size_t i = 0; i < caches; ++i) given.push_back(reader.tensor(cache, bytes));
    for (size_t i = 0; i < caches; ++i) want.push_back(reader.tensor(cache, bytes));
    const size_t out_bytes = static_cast<size_t>(rows * decoder.hidden * bytes);
    const size_t logit_bytes = static_cast<size_t>(tokens.batch * tokens.last * head.n * bytes);
    const void *want_out = reader.tensor(static_cast<int64_t>(out_bytes), 1),
               *want_logits = reader.tensor(static_cast<int64_t>(logit_bytes), 1);

    for (const int32_t isa : isas) {
        const auto require_same = [&](const void* a, const void* b, size_t size, const char* what) {
            if (std::memcmp(a, b, size) == 0) return;
            fail(std::string(llmint8_isa_name(isa)) + ": " + what + " of decoder " + std::to_string(index) +
                 " differ");
        };
        std::vector<Bytes> filled;
        std::vector<void*> pointers;
        for (void* from : given) {
            filled.emplace_back(static_cast<uint8_t*>(from), static_cast<uint8_t*>(from) + cache * bytes);
        }
        for (Bytes& buffer : filled) pointers.push_back(buffer.data());
        Bytes out(out_bytes), logits(logit_bytes);
        tokens.keys = pointers.data(), tokens.values = pointers.data() + decoder.layer_count;
        tokens.out = out.data(), tokens.logits = logits.data();
        if (llmint8_decode(isa, 1 + static_cast<int32_t>(index % 3), &decoder, &tokens) != 0) {
            fail(std::string(llmint8_isa_name(isa)) + ": " + llmint8_last_error());
        }
        for (size_t i = 0; i < caches; ++i) {
            require_same(pointers[i], want[i], filled[i].size(), "keys or values");
        }
        require_same(out.data(), want_out, out_bytes, "hidden states");
        require_same(logits.data(), want_logits, logit_bytes, "logits");
    }
    reader.forget();
}

int32_t find_isa(const std::string& name) {
    for (int32_t isa = 0; isa < llmint8_isa_count(); ++isa) {
        if (name == llmint8_isa_name(isa) && llmint8_isa_supported(isa, llmint8_cpu_features())) return isa;
    }
    fail("this build or this CPU has no " + name);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) fail("usage: decoders FILE ISA...");
    std::vector<int32_t> isas{find_isa("scalar")};
    for (int i = 2; i < argc; ++i) isas.push_back(find_isa(argv[i]));
    Reader reader(argv[1]);
    const int64_t count = reader.integer();
    for (int64_t i = 0; i < count; ++i) check(reader, i, isas);
    for (const int32_t isa : isas) {
        std::printf("%s: %d decoders with the reference's bits\n", llmint8_isa_name(isa),
                    static_cast<int>(count));
    }
}
