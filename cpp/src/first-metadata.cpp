#include "first-metadata.h"

#include "first-strings.h"

#include <cmath>
#include <cstring>

// accessors that check before they get: each returns false, with a message, instead of aborting

namespace {

struct key_reader {
    const gguf_context * gguf;
    std::string        & error;

    bool fail(const std::string & message) {
        error = message;
        return false;
    }

    int64_t find_typed(const char * key, gguf_type type) {
        const int64_t id = gguf_find_key(gguf, key);
        if (id < 0) {
            fail(std::string("key ") + key + " is missing");
            return -1;
        }
        if (gguf_get_kv_type(gguf, id) != type) {
            fail(std::string("key ") + key + " has type " + gguf_type_name(gguf_get_kv_type(gguf, id)) +
                 ", expected " + gguf_type_name(type));
            return -1;
        }
        return id;
    }

    bool read_u32(const char * key, uint32_t & out) {
        const int64_t id = find_typed(key, GGUF_TYPE_UINT32);
        if (id < 0) {
            return false;
        }
        out = gguf_get_val_u32(gguf, id);
        return true;
    }

    bool read_f32(const char * key, float & out) {
        const int64_t id = find_typed(key, GGUF_TYPE_FLOAT32);
        if (id < 0) {
            return false;
        }
        out = gguf_get_val_f32(gguf, id);
        return std::isfinite(out) || fail(std::string("key ") + key + " is not a finite number");
    }

    bool read_str(const char * key, std::string & out) {
        const int64_t id = find_typed(key, GGUF_TYPE_STRING);
        if (id < 0) {
            return false;
        }
        out = gguf_get_val_str(gguf, id);
        return true;
    }

    template <typename T>
    bool read_array(const char * key, gguf_type type, size_t n_min, size_t n_max, std::vector<T> & out) {
        const int64_t id = find_typed(key, GGUF_TYPE_ARRAY);
        if (id < 0) {
            return false;
        }
        if (gguf_get_arr_type(gguf, id) != type) {
            return fail(std::string("key ") + key + " has elements of type " +
                        gguf_type_name(gguf_get_arr_type(gguf, id)) + ", expected " + gguf_type_name(type));
        }
        const size_t n = gguf_get_arr_n(gguf, id);
        if (n < n_min || n > n_max) {
            return fail(std::string("key ") + key + " has " + std::to_string(n) + " elements, expected " +
                        (n_min == n_max ? std::to_string(n_min)
                                        : std::to_string(n_min) + " to " + std::to_string(n_max)));
        }
        out.resize(n);
        if (n > 0) {
            memcpy(out.data(), gguf_get_arr_data(gguf, id), n * sizeof(T));
        }
        return true;
    }

    bool read_floats(const char * key, size_t n, std::vector<float> & out) {
        if (!read_array(key, GGUF_TYPE_FLOAT32, n, n, out)) {
            return false;
        }
        for (float v : out) {
            if (!std::isfinite(v)) {
                return fail(std::string("key ") + key + " holds a value that is not finite");
            }
        }
        return true;
    }

    // n_rows rows of n_per_row finite values: f32[], or u64[] whose bytes are blocks of Q8_0
    bool read_matrices(const char * key, size_t n_rows, size_t n_per_row, first_matrices & out) {
        const int64_t id = find_typed(key, GGUF_TYPE_ARRAY);
        if (id < 0) {
            return false;
        }
        if (gguf_get_arr_type(gguf, id) != GGUF_TYPE_UINT64) {
            std::vector<float> values;
            if (!read_floats(key, n_rows * n_per_row, values)) {
                return false;
            }
            out.data.resize(values.size() * sizeof(float));
            memcpy(out.data.data(), values.data(), out.data.size());
            return true;
        }
        out.type = GGML_TYPE_Q8_0;
        const size_t n = n_rows * (n_per_row / ggml_blck_size(out.type)) * ggml_type_size(out.type);
        const size_t n_words = n / sizeof(uint64_t);
        if (n_per_row % ggml_blck_size(out.type) != 0 || n % sizeof(uint64_t) != 0) {
            return fail(std::string("key ") + key + " has blocks of Q8_0, which " + std::to_string(n_rows) +
                        " rows of " + std::to_string(n_per_row) + " cannot be");
        }
        std::vector<uint64_t> words;
        if (!read_array(key, GGUF_TYPE_UINT64, n_words, n_words, words)) {
            return false;
        }
        out.data.resize(n);
        memcpy(out.data.data(), words.data(), n);
        return ggml_validate_row_data(out.type, out.data.data(), n) ||
               fail(std::string("key ") + key + " holds a value that is not finite");
    }
};

bool check_shape(key_reader & reader, int32_t n_layer, int32_t n_embd, uint32_t & version) {
    uint32_t block_count = 0;
    uint32_t embedding_length = 0;
    if (!reader.read_u32("first.version", version)) {
        return false;
    }
    if (version < 1 || version > FIRST_FORMAT_VERSION) {
        return reader.fail("first.version is " + std::to_string(version) + ", this library reads versions 1 to " +
                           std::to_string(FIRST_FORMAT_VERSION));
    }
    if (!reader.read_u32("first.block_count", block_count) ||
        !reader.read_u32("first.embedding_length", embedding_length)) {
        return false;
    }
    if (block_count < 2 || block_count > FIRST_MAX_BLOCKS) {
        return reader.fail("first.block_count is not in 2.." + std::to_string(FIRST_MAX_BLOCKS));
    }
    if (embedding_length < 1 || embedding_length > FIRST_MAX_EMBEDDING) {
        return reader.fail("first.embedding_length is not in 1.." + std::to_string(FIRST_MAX_EMBEDDING));
    }
    if ((int64_t) block_count != n_layer) {
        return reader.fail("the routers are for " + std::to_string(block_count) + " layers, the model has " +
                           std::to_string(n_layer));
    }
    if ((int64_t) embedding_length != n_embd) {
        return reader.fail("the routers are for width " + std::to_string(embedding_length) + ", the model has " +
                           std::to_string(n_embd));
    }
    return true;
}

bool read_layers(key_reader & reader, int32_t n_layer, std::vector<int32_t> & layers) {
    if (!reader.read_array("first.layers", GGUF_TYPE_INT32, 1, (size_t) n_layer, layers)) {
        return false;
    }
    int32_t previous = 0;
    for (int32_t il : layers) {
        if (il <= previous || il >= n_layer) {
            return reader.fail("first.layers must ascend within 1.." + std::to_string(n_layer - 1) + ", found " +
                               std::to_string(il));
        }
        previous = il;
    }
    return true;
}

bool read_norm(key_reader & reader, float & norm_eps) {
    std::string norm;
    if (!reader.read_str("first.router.norm", norm)) {
        return false;
    }
    if (norm == "none") {
        // of no effect, but a key of the table with another type makes the file malformed
        if (gguf_find_key(reader.gguf, "first.router.norm_eps") >= 0 &&
            reader.find_typed("first.router.norm_eps", GGUF_TYPE_FLOAT32) < 0) {
            return false;
        }
        norm_eps = 0.0f;
        return true;
    }
    if (norm != "rms") {
        return reader.fail("first.router.norm is not one of none, rms");
    }
    if (!reader.read_f32("first.router.norm_eps", norm_eps)) {
        return false;
    }
    return (norm_eps > 0.0f && norm_eps < 1.0f) || reader.fail("first.router.norm_eps must lie in (0, 1)");
}

// The budget ladder is optional and this reader has no use for it, but a file whose ladder is broken is broken.
bool check_budget(key_reader & reader) {
    const bool has_fraction  = gguf_find_key(reader.gguf, "first.budget.fraction")  >= 0;
    const bool has_threshold = gguf_find_key(reader.gguf, "first.budget.threshold") >= 0;
    if (!has_fraction && !has_threshold) {
        return true;
    }
    std::vector<float> fraction;
    std::vector<float> threshold;
    if (!reader.read_array("first.budget.fraction", GGUF_TYPE_FLOAT32, 0, 64, fraction) ||
        !reader.read_floats("first.budget.threshold", fraction.size(), threshold)) {
        return false;
    }
    for (size_t i = 0; i < fraction.size(); i++) {
        const bool in_range = fraction[i] > 0.0f && fraction[i] < 1.0f && threshold[i] > 0.0f && threshold[i] < 1.0f;
        const bool ascends  = i == 0 || (fraction[i] > fraction[i - 1] && threshold[i] >= threshold[i - 1]);
        if (!in_range || !ascends) {
            return reader.fail("first.budget.* must lie in (0, 1) and ascend");
        }
    }
    return true;
}

// Stand-ins come with version 2, all four keys or none.
bool read_stand_ins(key_reader & reader, uint32_t version, size_t n_embd, first_metadata & out) {
    bool any = false;
    for (const char * key : { "first.stand_in.rank", "first.stand_in.down", "first.stand_in.up", "first.stand_in.bias" }) {
        any = any || gguf_find_key(reader.gguf, key) >= 0;
    }
    if (!any) {
        return true;
    }
    if (version < 2) {
        return reader.fail("stand-ins need first.version 2");
    }
    if (!reader.read_u32("first.stand_in.rank", out.rank)) {
        return false;
    }
    if (out.rank < 1 || out.rank > FIRST_MAX_RANK || out.rank > n_embd) {
        return reader.fail("first.stand_in.rank is not in 1.." + std::to_string(FIRST_MAX_RANK) +
                           " or above the model's width");
    }
    const size_t n = out.layers.size() * n_embd;
    if (n * out.rank > FIRST_MAX_STAND_IN) {
        return reader.fail("first.stand_in.down would have more than 2^26 elements");
    }
    return reader.read_matrices("first.stand_in.down", out.layers.size() * out.rank, n_embd, out.down) &&
           reader.read_matrices("first.stand_in.up", n, out.rank, out.up) &&
           reader.read_floats("first.stand_in.bias", n, out.shift);
}

} // namespace

bool first_metadata_present(const gguf_context * gguf) {
    const int64_t n_kv = gguf_get_n_kv(gguf);
    for (int64_t i = 0; i < n_kv; i++) {
        if (strncmp(gguf_get_key(gguf, i), "first.", 6) == 0) {
            return true;
        }
    }
    return false;
}

bool first_metadata_read(const gguf_context * gguf, int32_t n_layer, int32_t n_embd,
                         first_metadata & out, std::string & error) {
    key_reader reader { gguf, error };

    uint32_t version = 0;
    if (!first_strings_whole(gguf, error) || !check_shape(reader, n_layer, n_embd, version) ||
        !read_layers(reader, n_layer, out.layers)) {
        return false;
    }
    const size_t n_weights = out.layers.size() * (size_t) n_embd;
    if (n_weights > FIRST_MAX_WEIGHTS) {
        return reader.fail("first.router.weight would have more than 2^24 elements");
    }
    std::string pooling;
    if (!reader.read_floats("first.router.weight", n_weights, out.weight) ||
        !reader.read_floats("first.router.bias", out.layers.size(), out.bias) ||
        !read_norm(reader, out.norm_eps) ||
        !reader.read_f32("first.threshold", out.threshold) ||
        !reader.read_str("first.pooling", pooling) ||
        !reader.read_str("first.base", out.base)) {
        return false;
    }
    if (!(out.threshold > 0.0f && out.threshold < 1.0f)) {
        return reader.fail("first.threshold must lie in (0, 1)");
    }
    if (pooling != "mean") {
        return reader.fail("first.pooling is not mean, the only pooling that this library knows");
    }
    return check_budget(reader) && read_stand_ins(reader, version, (size_t) n_embd, out);
}
