// The agreement suite for CPUs that cannot run torch, for example under an emulator.
//
//   agreement CASES ISA...
//
// CASES is a file of inputs with the bits that the reference returns for them, made by write_cases.py. The
// scalar kernels and each ISA named must be had by this CPU and return these bits; and on many more random
// inputs, each ISA must return the bits of the scalar kernels.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "llmint8.h"

namespace {

using Bytes = std::vector<uint8_t>;

struct Case {
    int32_t dtype, bias_dtype;  // bias_dtype: -1 for no bias
    int32_t m, k, n, p;
    float threshold;
    Bytes x, weight, absmax, bias, outlier_cols, weight_low;
};

struct Result {
    Bytes q, row_scale, y;
};

[[noreturn]] void fail(const std::string& message) {
    std::fprintf(stderr, "agreement: %s\n", message.c_str());
    std::exit(1);
}

size_t element_size(int32_t dtype) {
    return dtype == LLMINT8_FLOAT32 ? 4 : 2;
}

std::string describe(const Case& c) {
    return "m " + std::to_string(c.m) + ", k " + std::to_string(c.k) + ", n " + std::to_string(c.n) + ", p " +
           std::to_string(c.p) + ", dtype " + std::to_string(c.dtype) + ", bias dtype " +
           std::to_string(c.bias_dtype) + ", threshold " + std::to_string(c.threshold);
}

Result empty_result(const Case& c) {
    const size_t m = static_cast<size_t>(c.m);
    return {Bytes(m * c.k * 2), Bytes(m * 4), Bytes(m * c.n * element_size(c.dtype))};
}

Result run(const Case& c, int32_t isa, int32_t threads) {
    Result r = empty_result(c);
    for (Bytes* bytes : {&r.q, &r.row_scale, &r.y}) std::memset(bytes->data(), 0xa5, bytes->size());
    const bool has_bias = c.bias_dtype >= 0;
    if (llmint8_quantize_rows(isa, threads, c.dtype, c.m, c.k, c.x.data(), c.threshold,
                              reinterpret_cast<int16_t*>(r.q.data()),
                              reinterpret_cast<float*>(r.row_scale.data())) != 0 ||
        llmint8_linear(isa, threads, c.dtype, has_bias ? c.bias_dtype : c.dtype, c.m, c.k, c.n, c.x.data(),
                       reinterpret_cast<const int8_t*>(c.weight.data()),
                       reinterpret_cast<const float*>(c.absmax.data()), has_bias ? c.bias.data() : nullptr,
                       c.threshold, c.p, reinterpret_cast<const int32_t*>(c.outlier_cols.data()),
                       reinterpret_cast<const int8_t*>(c.weight_low.data()), r.y.data()) != 0) {
        fail(std::string(llmint8_isa_name(isa)) + ": " + llmint8_last_error());
    }
    return r;
}

void compare(const Bytes& got, const Bytes& want, const char* what, int32_t isa, int32_t threads,
             const Case& c) {
    for (size_t i = 0; i < want.size(); ++i) {
        if (got[i] == want[i]) continue;
        fail(std::string(llmint8_isa_name(isa)) + ": byte " + std::to_string(i) + " of " + what +
             " differs, with " + std::to_string(threads) + " threads, " + describe(c));
    }
}

void check(const Case& c, const Result& want, int32_t isa, int32_t threads) {
    const Result got = run(c, isa, threads);
    compare(got.q, want.q, "q", isa, threads, c);
    compare(got.row_scale, want.row_scale, "row_scale", isa, threads, c);
    compare(got.y, want.y, "y", isa, threads, c);
}

void read(std::FILE* file, void* to, size_t bytes) {
    if (std::fread(to, 1, bytes, file) != bytes) fail("the file of cases ends early");
}

// Every case of the file, on every instruction set.
int check_file(const char* path, const std::vector<int32_t>& isas) {
    std::FILE* file = std::fopen(path, "rb");
    if (file == nullptr) fail(std::string("cannot open ") + path);
    int32_t count;
    read(file, &count, sizeof count);
    for (int32_t i = 0; i < count; ++i) {
        Case c;
        for (int32_t* field : {&c.dtype, &c.bias_dtype, &c.m, &c.k, &c.n, &c.p}) {
            read(file, field, sizeof *field);
        }
        read(file, &c.threshold, sizeof c.threshold);
        const size_t m = static_cast<size_t>(c.m), k = static_cast<size_t>(c.k), n = static_cast<size_t>(c.n);
        c.x.resize(m * k * element_size(c.dtype));
        c.weight.resize(n * k);
        c.absmax.resize(n * 4);
        if (c.bias_dtype >= 0) c.bias.resize(n * element_size(c.bias_dtype));
        c.outlier_cols.resize(static_cast<size_t>(c.p) * 4);
        c.weight_low.resize(n * static_cast<size_t>(c.p));
        Result want = empty_result(c);
        for (Bytes* bytes : {&c.x, &c.weight, &c.absmax, &c.bias, &c.outlier_cols, &c.weight_low, &want.q,
                             &want.row_scale, &want.y}) {
            read(file, bytes->data(), bytes->size());
        }
        for (const int32_t isa : isas) check(c, want, isa, 1 + i % 3);
    }
    std::fclose(file);
    return count;
}

class Random {
  public:
    int32_t below(int32_t limit) { return static_cast<int32_t>(engine_() % static_cast<uint32_t>(limit)); }
    float uniform() { return static_cast<float>(engine_() >> 8) * 0x1p-23f - 1.0f; }  // in [-1, 1)

    // Numbers of a dtype, 16-bit ones by cutting a float's bits (bfloat16) or from small integers (float16).
    void append(float value, int32_t dtype, Bytes& to) {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        if (dtype == LLMINT8_BFLOAT16) bits >>= 16;
        if (dtype == LLMINT8_FLOAT16) bits = half_bits(bits);
        const uint8_t bytes[4] = {static_cast<uint8_t>(bits), static_cast<uint8_t>(bits >> 8),
                                  static_cast<uint8_t>(bits >> 16), static_cast<uint8_t>(bits >> 24)};
        to.insert(to.end(), bytes, bytes + element_size(dtype));
    }

  private:
    // Cut, not rounded; too small becomes zero, too large and NaN keep their kind.
    static uint32_t half_bits(uint32_t bits) {
        const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
        if (magnitude > 0x7f800000u) return sign | 0x7e00u;
        if (magnitude >= 0x47800000u) return sign | 0x7c00u;
        return magnitude < 0x38800000u ? sign : sign | (magnitude - 0x38000000u) >> 13;
    }

    std::mt19937 engine_;
};

enum RowKind { kPlain, kFewOutliers, kManyOutliers, kAllOutliers, kZero, kTiny, kNan, kInfinite, kRowKinds };

Case random_case(Random& random, int32_t m, int32_t k, int32_t n) {
    const float thresholds[] = {0.0f, 6.0f, -1.0f};
    Case c{};
    c.dtype = random.below(3), c.bias_dtype = random.below(4) - 1, c.m = m, c.k = k, c.n = n;
    c.threshold = thresholds[random.below(3)];
    for (int32_t row = 0; row < m; ++row) {
        const int32_t kind = random.below(3) == 0 ? kPlain : random.below(kRowKinds);
        const int32_t special = random.below(k);
        for (int32_t i = 0; i < k; ++i) {
            float value = 3.0f * random.uniform();
            if (kind == kFewOutliers && random.below(50) == 0) value *= 40;
            if (kind == kManyOutliers && random.below(3) == 0) value *= 40;
            if (kind == kAllOutliers) value += value < 0 ? -60.0f : 60.0f;
            if (kind == kZero) value *= 0;
            if (kind == kTiny) value *= 0x1p-104f;
            if (i == special && kind == kNan) value = std::numeric_limits<float>::quiet_NaN();
            if (i == special && kind == kInfinite) value = -std::numeric_limits<float>::infinity();
            random.append(value, c.dtype, c.x);
        }
    }
    const bool extreme = random.below(8) == 0;  // the largest sums, and the one code that no weight has
    for (int32_t i = 0; i < n * k; ++i) {
        const int32_t code = extreme ? -128 : random.below(256) - 128;
        c.weight.push_back(static_cast<uint8_t>(code));
    }
    // Columns with a second digit: none, all, or one in so many.
    const int32_t every = random.below(4) == 0 ? 1 : 2 + random.below(40);
    for (int32_t i = random.below(3) == 0 ? k : random.below(every); i < k; i += every, ++c.p) {
        const uint8_t* column = reinterpret_cast<const uint8_t*>(&i);
        c.outlier_cols.insert(c.outlier_cols.end(), column, column + sizeof i);
    }
    for (int32_t i = 0; i < n * c.p; ++i) {
        c.weight_low.push_back(static_cast<uint8_t>(extreme ? -128 : random.below(256) - 128));
    }
    for (int32_t i = 0; i < n; ++i) {
        const float absmax = random.below(20) == 0 ? 0.0f : random.uniform() + 1.0f;
        random.append(absmax, LLMINT8_FLOAT32, c.absmax);
        if (c.bias_dtype >= 0) random.append(random.uniform(), c.bias_dtype, c.bias);
    }
    return c;
}

// Sizes around every block length, each with several numbers of rows and threads.
int check_random(const std::vector<int32_t>& isas) {
    const int32_t sizes[] = {1, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 127, 129};
    const int32_t thread_counts[] = {1, 2, 3, 5};
    Random random;
    int count = 0;
    for (const int32_t k : sizes) {
        for (const int32_t n : sizes) {
            for (int repeat = 0; repeat < 4; ++repeat, ++count) {
                const Case c = random_case(random, 1 + (count * 7) % 40, k, n);
                const Result want = run(c, 0, 1);
                for (const int32_t isa : isas) check(c, want, isa, thread_counts[count / 3 % 4]);
            }
        }
    }
    for (const int32_t m : {1, 3, 13, 31}) {  // enough work that the threads really share it
        const Case c = random_case(random, m, 1100, 300);
        const Result want = run(c, 0, 1);
        for (const int32_t isa : isas) {
            for (const int32_t threads : thread_counts) check(c, want, isa, threads);
        }
        ++count;
    }
    return count;
}

int32_t find_isa(const std::string& name) {
    for (int32_t isa = 0; isa < llmint8_isa_count(); ++isa) {
        if (name != llmint8_isa_name(isa)) continue;
        if (!llmint8_isa_supported(isa, llmint8_cpu_features())) fail("this CPU lacks " + name);
        return isa;
    }
    fail("this build has no " + name);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) fail("usage: agreement CASES ISA...");
    std::vector<int32_t> isas{find_isa("scalar")};
    for (int i = 2; i < argc; ++i) isas.push_back(find_isa(argv[i]));
    const int from_reference = check_file(argv[1], isas);
    const int from_scalar = check_random(isas);
    for (const int32_t isa : isas) {
        std::printf("%s: %d cases with the reference's bits, %d with the scalar kernels'\n",
                    llmint8_isa_name(isa), from_reference, from_scalar);
    }
}
