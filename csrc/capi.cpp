// The C interface: argument checks, exceptions to a status and a message. No arithmetic.
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "dispatch.h"
#include "linear_driver.h"
#include "llmint8.h"

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
                       float threshold, void* y) {
    return guarded([&] {
        const auto& kernels = checked_table(isa);
        check_dtype(dtype);
        check_dtype(bias_dtype);
        require(m >= 0 && n >= 0 && k >= 0 && k <= llmint8::kMaxK,
                "sizes must be 0 <= m, n, 0 <= k <= 131072");
        if (m == 0 || n == 0) return;
        const llmint8::LinearCall call{nullptr, n, weight, absmax, bias, bias_dtype, y, dtype};
        llmint8::linear(kernels, threads, call, m, k, x, threshold);
    });
}
