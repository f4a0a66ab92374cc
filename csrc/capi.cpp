// The C interface: argument checks, exceptions to a status and a message. No arithmetic.
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "decoder.h"
#include "dispatch.h"
#include "fourbit.h"
#include "gradient.h"
#include "linear_driver.h"
#include "llmint8.h"
#include "optimizer.h"

namespace {

thread_local std::string last_error;

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

const llmint8::KernelTable& checked_table(int32_t isa) {
    require(isa >= 0 && isa < llmint8::table_count(), "no such instruction set in this build");
    const auto& table = llmint8::table(isa);
    require(llmint8::supported(table, llmint8::cpu_features()), "this CPU lacks the instruction set");
    return table;
}

void check_dtype(int32_t dtype) {
    require(dtype == LLMINT8_FLOAT32 || dtype == LLMINT8_FLOAT16 || dtype == LLMINT8_BFLOAT16,
            "unknown element type");
}

void check_columns(int64_t p, int64_t k, const int32_t* outlier_cols) {
    require(p >= 0 && p <= k, "the number of outlier columns must be 0 <= p <= k");
    for (int64_t i = 0; i < p; ++i) {
        require(outlier_cols[i] >= 0 && outlier_cols[i] < k, "an outlier column is not within [0, k)");
    }
}

void check_linear(const llmint8_decoder_linear& layer, int64_t k, int64_t n) {
    check_dtype(layer.bias_dtype);
    require(layer.k == k && layer.n == n, "a linear layer does not have the sizes of its decoder");
    require(layer.weight != nullptr, "a linear layer has no weight");
    require(layer.absmax == nullptr || k <= llmint8::kMaxK, "an int8 layer must have k <= 131072");
    check_columns(layer.outliers, k, layer.outlier_cols);
}

void check_decoder(const llmint8_decoder& d) {
    check_dtype(static_cast<int32_t>(d.dtype));
    require(d.hidden > 0 && d.heads > 0 && d.kv_heads > 0 && d.heads % d.kv_heads == 0 && d.head_dim > 0 &&
                d.head_dim % 2 == 0,
            "heads must be a multiple of kv_heads, and head_dim even");
    require(d.scaling > 0, "scores must be scaled by a positive number");
    for (int64_t i = 0; i < d.layer_count; ++i) {
        const llmint8_decoder_layer& layer = d.layers[i];
        require(layer.activation >= LLMINT8_SILU && layer.activation <= LLMINT8_GELU, "unknown activation");
        require(layer.window >= 0, "a window must not be negative");
        check_linear(layer.q, d.hidden, d.heads * d.head_dim);
        check_linear(layer.k, d.hidden, d.kv_heads * d.head_dim);
        check_linear(layer.v, d.hidden, d.kv_heads * d.head_dim);
        check_linear(layer.o, d.heads * d.head_dim, d.hidden);
        check_linear(layer.gate, d.hidden, layer.gate.n);
        check_linear(layer.up, d.hidden, layer.gate.n);
        check_linear(layer.down, layer.gate.n, d.hidden);
    }
    if (d.head != nullptr) check_linear(*d.head, d.hidden, d.head->n);
}

template <typename Body>
int32_t guarded(const Body& body) {
    last_error.clear();
    try {
        body();
        return 0;
    } catch (const std::bad_alloc&) {
        last_error = "out of memory";
    } catch (const std::exception& error) {
        last_error = error.what();
    }
    return -1;
}

}  // namespace

int32_t llmint8_abi_version(void) {
    return LLMINT8_ABI_VERSION;
}

const char* llmint8_last_error(void) {
    return last_error.c_str();
}

uint32_t llmint8_cpu_features(void) {
    return llmint8::cpu_features();
}

int32_t llmint8_isa_count(void) {
    return llmint8::table_count();
}

const char* llmint8_isa_name(int32_t isa) {
    return isa >= 0 && isa < llmint8::table_count() ? llmint8::table(isa).name : "";
}

int32_t llmint8_isa_supported(int32_t isa, uint32_t features) {
    return isa >= 0 && isa < llmint8::table_count() && llmint8::supported(llmint8::table(isa), features);
}

int32_t llmint8_best_isa(uint32_t features) {
    int32_t best = 0;
    for (int32_t isa = 0; isa < llmint8::table_count(); ++isa) {
        if (llmint8::supported(llmint8::table(isa), features)) best = isa;
    }
    return best;
}

int32_t llmint8_quantize_rows(int32_t isa, int32_t threads, int32_t dtype, int64_t m, int64_t k,
                              const void* x, float threshold, int16_t* q, float* row_scale) {
    return guarded([&] {
        const auto& kernels = checked_table(isa);
        check_dtype(dtype);
        require(m >= 0 && k >= 0 && k <= llmint8::kMaxK, "sizes must be 0 <= m, 0 <= k <= 131072");
        if (m > 0) llmint8::quantize_rows(kernels, threads, dtype, m, k, x, threshold, q, row_scale);
    });
}

int32_t llmint8_linear(int32_t isa, int32_t threads, int32_t dtype, int32_t bias_dtype, int64_t m, int64_t k,
                       int64_t n, const void* x, const int8_t* weight, const float* absmax, const void* bias,
                       float threshold, int64_t p, const int32_t* outlier_cols, const int8_t* weight_low,
                       void* y) {
    return guarded([&] {
        const auto& kernels = checked_table(isa);
        check_dtype(dtype);
        check_dtype(bias_dtype);
        require(m >= 0 && n >= 0 && k >= 0 && k <= llmint8::kMaxK,
                "sizes must be 0 <= m, n, 0 <= k <= 131072");
        check_columns(p, k, outlier_cols);
        if (m == 0 || n == 0) return;
        const llmint8::LinearCall call{n, weight,       absmax,     bias, bias_dtype, threshold,
                                       p, outlier_cols, weight_low, y,    dtype};
        llmint8::linear(kernels, threads, call, m, k, x);
    });
}

int32_t llmint8_optimizer_step(int32_t isa, int32_t threads, int32_t dtype, int32_t grad_dtype, int32_t rule,
                               int64_t count, void* p, const void* g, void* state1, void* state2,
                               void* state3, float* absmax1, float* absmax2, float* absmax3,
                               const float* constants, double* norms) {
    return guarded([&] {
        const auto& kernels = checked_table(isa);
        check_dtype(dtype);
        check_dtype(grad_dtype);
        require(count >= 0, "the number of weights must not be negative");
        const int states = llmint8::optimizer_states(rule);
        require(states > 0, "unknown rule of an optimizer");
        const llmint8::OptimizerCall call{
            rule,      dtype, grad_dtype, count, p, g, {state1, state2, state3}, {absmax1, absmax2, absmax3},
            constants, norms};
        for (int s = 0; s < states; ++s)
            require(count == 0 || call.states[s], "a state of the rule is missing");
        if (count > 0) llmint8::optimizer_step(kernels, threads, call);
    });
}

int32_t llmint8_decode(int32_t isa, int32_t threads, const llmint8_decoder* decoder,
                       const llmint8_decoder_tokens* tokens) {
    return guarded([&] {
        const auto& kernels = checked_table(isa);
        require(threads > 0, "at least one thread is needed");
        check_decoder(*decoder);
        require(tokens->batch >= 0 && tokens->tokens >= 0 && tokens->past >= 0 && tokens->last >= 0 &&
                    tokens->last <= tokens->tokens && tokens->past + tokens->tokens <= tokens->capacity,
                "the cache must have room for the tokens, and logits are of some of them");
        require(tokens->rotary_batch == 1 || tokens->rotary_batch == tokens->batch,
                "cos and sin must be of one sequence or of all");
        llmint8::decode(kernels, threads, *decoder, *tokens);
    });
}

int32_t llmint8_input_gradient(int32_t isa, int32_t threads, int32_t dtype, int64_t m, int64_t k, int64_t n,
                               const void* grad, const int8_t* weight, const float* absmax, int64_t p,
                               const int32_t* outlier_cols, const int8_t* weight_low, void* grad_input) {
    return guarded([&] {
        const auto& kernels = checked_table(isa);
        check_dtype(dtype);
        require(m >= 0 && n >= 0 && k >= 0, "sizes must be 0 <= m, k, n");
        check_columns(p, k, outlier_cols);
        if (m == 0 || k == 0) return;
        llmint8::input_gradient(
            kernels, threads,
            {dtype, m, k, n, grad, weight, absmax, p, outlier_cols, weight_low, grad_input});
    });
}

int32_t llmint8_dequantize_4bit(int32_t isa, int32_t threads, int32_t dtype, int64_t count,
                                const uint8_t* codes, const float* book, int64_t block, const float* absmax,
                                const uint8_t* absmax_codes, const float* nested_book, float offset,
                                void* out) {
    return guarded([&] {
        const auto& kernels = checked_table(isa);
        check_dtype(dtype);
        require(count >= 0 && block > 0, "sizes must be 0 <= count, 0 < block");
        if (count == 0) return;
        llmint8::fourbit_dequantize(kernels, threads,
                                    {codes, book, block, absmax, absmax_codes, nested_book, offset}, count,
                                    dtype, out);
    });
}

int32_t llmint8_linear_4bit(int32_t isa, int32_t threads, int32_t dtype, int32_t bias_dtype, int64_t m,
                            int64_t k, int64_t n, const void* x, const uint8_t* codes, const float* book,
                            int64_t block, const float* absmax, const uint8_t* absmax_codes,
                            const float* nested_book, float offset, const void* bias, void* y) {
    return guarded([&] {
        const auto& kernels = checked_table(isa);
        check_dtype(dtype);
        check_dtype(bias_dtype);
        require(m >= 0 && n >= 0 && k >= 0 && block > 0, "sizes must be 0 <= m, n, k, 0 < block");
        if (m == 0 || n == 0) return;
        const llmint8::FourbitWeight weight{codes, book, block, absmax, absmax_codes, nested_book, offset};
        llmint8::fourbit_linear(kernels, threads, {dtype, m, k, n, x, weight, bias, bias_dtype, y});
    });
}
