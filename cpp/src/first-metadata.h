#pragma once

// Reads and validates the first.* keys of a GGUF file (docs/format.md). Knows nothing of llama.cpp's models.

#include "ggml.h"
#include "gguf.h"

#include <cstdint>
#include <string>
#include <vector>

static constexpr uint32_t FIRST_FORMAT_VERSION = 2; // 1 knows no stand-ins, and what has none is still written as 1
static constexpr uint32_t FIRST_MAX_BLOCKS     = 512;
static constexpr uint32_t FIRST_MAX_EMBEDDING  = 65536;
static constexpr size_t   FIRST_MAX_WEIGHTS    = 1u << 24;
static constexpr uint32_t FIRST_MAX_RANK       = 256;
static constexpr size_t   FIRST_MAX_STAND_IN   = 1u << 26;

// One matrix of each layer, one after the other, as they stand in the file.
struct first_matrices {
    ggml_type            type = GGML_TYPE_F32; // or Q8_0
    std::vector<uint8_t> data;
};

struct first_metadata {
    std::vector<int32_t> layers;    // skippable layers, ascending
    std::vector<float>   weight;    // [layers.size() * n_embd], one row per layer
    std::vector<float>   bias;      // [layers.size()]
    float                threshold = 0.0f;
    float                norm_eps  = 0.0f; // > 0: inputs are RMS-normalised; 0: used as they are
    std::string          base;      // fingerprint of the base model, "" = unknown

    // what stands in for a skipped layer, one for each of layers; all empty if rank is 0
    uint32_t             rank = 0;
    first_matrices       down;      // [layers.size() * rank] rows of n_embd
    first_matrices       up;        // [layers.size() * n_embd] rows of rank
    std::vector<float>   shift;     // [layers.size() * n_embd]
};

// True if the file has any first.* key.
bool first_metadata_present(const struct gguf_context * gguf);

// Reads all keys for a model of n_layer layers and n_embd columns. Every key's type, element type and length is
// checked before it is read, because gguf_get_* asserts. On failure returns false and says why in error.
bool first_metadata_read(const struct gguf_context * gguf, int32_t n_layer, int32_t n_embd,
                         first_metadata & out, std::string & error);
