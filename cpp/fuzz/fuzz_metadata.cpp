// libFuzzer target: any bytes, parsed by gguf.cpp and read by our reader of the first.* keys.
//
// With FIRST_FUZZ_VERDICTS set it prints a hash of each input and what it was taken for, for tests/fuzz/compare.py.
//
// Whatever the bytes are, nothing may crash, leak or be undefined; routers that are accepted must meet every rule of
// docs/format.md that this file can check, and a refusal must say why in one line.

#include "first-metadata.h"

#include "ggml.h"
#include "gguf.h"

#include <cinttypes>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

// the shape of the seeds (tests/fuzz/seeds.py)
constexpr int32_t SEED_LAYERS = 6;
constexpr int32_t SEED_EMBD   = 64;

void require(bool condition, const char * what) {
    if (!condition) {
        fprintf(stderr, "accepted, but wrong: %s\n", what);
        abort();
    }
}

bool in_unit(float value) {
    return value > 0.0f && value < 1.0f;
}

void check_matrices(const first_matrices & matrices, size_t n_rows, size_t n_per_row) {
    require(matrices.type == GGML_TYPE_F32 || matrices.type == GGML_TYPE_Q8_0, "the type of a matrix");
    require(n_per_row % ggml_blck_size(matrices.type) == 0, "the rows of a matrix");
    require(matrices.data.size() == n_rows * ggml_row_size(matrices.type, n_per_row), "the size of a matrix");
    std::vector<float> values(n_rows * n_per_row);
    if (matrices.type == GGML_TYPE_F32) {
        memcpy(values.data(), matrices.data.data(), matrices.data.size());
    } else {
        ggml_get_type_traits(matrices.type)->to_float(matrices.data.data(), values.data(), (int64_t) values.size());
    }
    for (float value : values) {
        require(std::isfinite(value), "a weight of a stand-in");
    }
}

void check_accepted(const first_metadata & meta, int32_t n_layer, int32_t n_embd) {
    const size_t n = meta.layers.size();
    require(n >= 1 && n < (size_t) n_layer, "number of layers");
    require(meta.weight.size() == n * (size_t) n_embd && meta.weight.size() <= FIRST_MAX_WEIGHTS, "number of weights");
    require(meta.bias.size() == n, "number of biases");
    for (size_t i = 0; i < n; i++) {
        require(meta.layers[i] >= 1 && meta.layers[i] < n_layer, "a layer");
        require(i == 0 || meta.layers[i] > meta.layers[i - 1], "the order of layers");
        require(std::isfinite(meta.bias[i]), "a bias");
    }
    for (float weight : meta.weight) {
        require(std::isfinite(weight), "a weight");
    }
    require(in_unit(meta.threshold), "the threshold");
    require(meta.norm_eps == 0.0f || in_unit(meta.norm_eps), "norm_eps");
    require(meta.rank <= FIRST_MAX_RANK && meta.rank <= (uint32_t) n_embd, "the rank of the stand-ins");
    require(meta.shift.size() == (meta.rank ? n * n_embd : 0), "number of their biases");
    if (meta.rank == 0) {
        require(meta.down.data.empty() && meta.up.data.empty(), "weights without a rank");
        return;
    }
    check_matrices(meta.down, n * meta.rank, n_embd);
    check_matrices(meta.up, n * n_embd, meta.rank);
    for (float value : meta.shift) {
        require(std::isfinite(value), "a bias of a stand-in");
    }
}

bool read(const gguf_context * gguf, int32_t n_layer, int32_t n_embd) {
    first_metadata meta;
    std::string    error;
    if (!first_metadata_read(gguf, n_layer, n_embd, meta, error)) {
        require(!error.empty() && error.find('\n') == error.npos, "a refusal without one line that says why");
        return false;
    }
    check_accepted(meta, n_layer, n_embd);
    return true;
}

// The shape that the file itself names, so that a changed shape is read too; 0 where it names none.
int32_t own(const gguf_context * gguf, const std::string & key, uint32_t most) {
    const int64_t id = gguf_find_key(gguf, key.c_str());
    if (id < 0 || gguf_get_kv_type(gguf, id) != GGUF_TYPE_UINT32 || gguf_get_val_u32(gguf, id) > most) {
        return 0;
    }
    return (int32_t) gguf_get_val_u32(gguf, id);
}

std::string architecture(const gguf_context * gguf) {
    const int64_t id = gguf_find_key(gguf, "general.architecture");
    return id >= 0 && gguf_get_kv_type(gguf, id) == GGUF_TYPE_STRING ? gguf_get_val_str(gguf, id) : "";
}

const char * verdict(const gguf_context * gguf) {
    if (!gguf) {
        return "refused";
    }
    if (!first_metadata_present(gguf)) {
        return "none";
    }
    // the shapes that the routers name and that of the seeds, then that of the model, which decides
    read(gguf, own(gguf, "first.block_count", FIRST_MAX_BLOCKS), own(gguf, "first.embedding_length", FIRST_MAX_EMBEDDING));
    read(gguf, SEED_LAYERS, SEED_EMBD);
    const std::string arch    = architecture(gguf);
    const int32_t     n_layer = own(gguf, arch + ".block_count", FIRST_MAX_BLOCKS);
    const int32_t     n_embd  = own(gguf, arch + ".embedding_length", FIRST_MAX_EMBEDDING);
    if (n_layer == 0 || n_embd == 0) {
        return "shapeless";
    }
    return read(gguf, n_layer, n_embd) ? "valid" : "bad";
}

uint64_t fnv1a64(const uint8_t * data, size_t size) {
    uint64_t hash = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < size; i++) {
        hash = (hash ^ data[i]) * 0x100000001b3ull;
    }
    return hash;
}

} // namespace

extern "C" int LLVMFuzzerInitialize(int *, char ***) {
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    static const bool print = getenv("FIRST_FUZZ_VERDICTS") != nullptr;

    gguf_init_params params = { /*.no_alloc =*/ true, /*.ctx =*/ nullptr };
    gguf_context * gguf = gguf_init_from_buffer(data, size, params);
    const char * word = verdict(gguf);
    if (print) {
        printf("%016" PRIx64 " %s\n", fnv1a64(data, size), word);
    }
    gguf_free(gguf);
    return 0;
}
