#pragma once

// The routers of a loaded model: their weights on the devices of their layers.

#include "ggml-cpp.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

struct gguf_context;
struct llama_model;

struct first_router {
    ggml_tensor * weight = nullptr; // F32 [n_embd]
    ggml_tensor * bias   = nullptr; // F32 [1]

    // what stands in for the layer where it is skipped: x + up (down norm(x)) + shift; null if nothing does
    ggml_tensor * down  = nullptr;  // Q8_0 or F32 [n_embd, rank]
    ggml_tensor * up    = nullptr;  // Q8_0 or F32 [rank, n_embd]
    ggml_tensor * shift = nullptr;  // F32 [n_embd]
};

struct first_routers {
    bool        valid = false;
    std::string status;             // why not valid; "" when valid

    float threshold = 0.0f;
    float norm_eps  = 0.0f;         // > 0: RMS-normalise the layer's input before scoring

    uint32_t rank = 0;              // of the stand-ins; 0 if there are none

    std::vector<int32_t>      layers;   // routed layers, ascending
    std::vector<first_router> by_layer; // [n_layer]; weight is null for layers without a router

    bool has(int32_t il) const {
        return valid && il >= 0 && il < (int32_t) by_layer.size() && by_layer[il].weight != nullptr;
    }

    std::vector<ggml_context_ptr>        ctxs;
    std::vector<ggml_backend_buffer_ptr> bufs;
};

// Called when a model's tensors are loaded. Never fails: a file without routers or with bad ones gives an object with
// valid == false (and one warning in the second case), and the model runs at full depth.
std::shared_ptr<const first_routers> first_routers_load(const gguf_context * gguf, const llama_model & model);

// Layers that the graph builds, without trailing MTP layers.
int32_t first_model_n_layer(const llama_model & model);

// Why no layer of this model may be skipped, or null. What a graph shows by itself is left to first_build_graph.
const char * first_model_refusal(const llama_model & model);

// Whether decode rows may leave out layer il of the model.
bool first_model_skippable(const llama_model & model, int32_t il);
