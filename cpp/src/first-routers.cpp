#include "first-routers.h"

#include "first-metadata.h"

#include "llama-impl.h"
#include "llama-model.h"

#include <cinttypes>
#include <cstdio>
#include <map>

//
// fingerprint of the base model (docs/format.md)
//

static uint64_t fnv1a64(uint64_t hash, const void * data, size_t n_bytes) {
    const uint8_t * bytes = (const uint8_t *) data;
    for (size_t i = 0; i < n_bytes; i++) {
        hash = (hash ^ bytes[i]) * 0x100000001b3ull;
    }
    return hash;
}

// Norm weights stay F32 through quantization, so they tell fine-tunes apart and survive llama-quantize.
static std::string fingerprint(const llama_model & model) {
    std::vector<std::string> names;
    for (int32_t il = 0; il < first_model_n_layer(model); il++) {
        names.push_back("blk." + std::to_string(il) + ".attn_norm.weight");
        names.push_back("blk." + std::to_string(il) + ".ffn_norm.weight");
    }
    names.push_back("output_norm.weight");

    uint64_t hash  = 0xcbf29ce484222325ull;
    bool     found = false;
    std::vector<uint8_t> data;
    for (const auto & name : names) {
        const ggml_tensor * tensor = model.get_tensor(name.c_str());
        if (!tensor || tensor->type != GGML_TYPE_F32 || !tensor->buffer ||
            ggml_nelements(tensor) > FIRST_MAX_EMBEDDING) {
            continue;
        }
        data.resize(ggml_nbytes(tensor));
        ggml_backend_tensor_get(tensor, data.data(), 0, data.size());
        hash  = fnv1a64(hash, name.data(), name.size());
        hash  = fnv1a64(hash, data.data(), data.size());
        found = true;
    }
    if (!found) {
        return "";
    }
    char text[32];
    snprintf(text, sizeof(text), "fnv1a64:%016" PRIx64, hash);
    return text;
}

//
// placement
//

static void set_matrix(ggml_tensor * tensor, const first_matrices & matrices, size_t i) {
    const size_t n = ggml_nbytes(tensor);
    ggml_backend_tensor_set(tensor, matrices.data.data() + i*n, 0, n);
}

// One context and one buffer per buffer type, so that each router sits where its layer is computed.
static bool place_routers(first_routers & routers, const first_metadata & meta, const llama_model & model) {
    const int32_t n_embd = (int32_t) model.hparams.n_embd;

    std::map<ggml_backend_buffer_type_t, ggml_context *> ctx_map;
    std::map<ggml_backend_buffer_type_t, int>            n_layer;
    routers.by_layer.resize(first_model_n_layer(model));
    for (int32_t il : meta.layers) {
        ggml_backend_buffer_type_t buft = model.select_buft(il);
        auto it = ctx_map.find(buft);
        if (it == ctx_map.end()) {
            ggml_init_params params = {
                /*.mem_size   =*/ 5*meta.layers.size()*ggml_tensor_overhead(),
                /*.mem_buffer =*/ nullptr,
                /*.no_alloc   =*/ true,
            };
            ggml_context * ctx = ggml_init(params);
            if (!ctx) {
                return false;
            }
            routers.ctxs.emplace_back(ctx);
            it = ctx_map.emplace(buft, ctx).first;
        }
        n_layer[buft]++;
        first_router & router = routers.by_layer[il];
        router.weight = ggml_new_tensor_1d(it->second, GGML_TYPE_F32, n_embd);
        router.bias   = ggml_new_tensor_1d(it->second, GGML_TYPE_F32, 1);
        ggml_format_name(router.weight, "first.router.%d.weight", il);
        ggml_format_name(router.bias,   "first.router.%d.bias",   il);
        if (meta.rank > 0) {
            router.down  = ggml_new_tensor_2d(it->second, meta.down.type, n_embd, meta.rank);
            router.up    = ggml_new_tensor_2d(it->second, meta.up.type, meta.rank, n_embd);
            router.shift = ggml_new_tensor_1d(it->second, GGML_TYPE_F32, n_embd);
            ggml_format_name(router.down,  "first.stand_in.%d.down", il);
            ggml_format_name(router.up,    "first.stand_in.%d.up",   il);
            ggml_format_name(router.shift, "first.stand_in.%d.bias", il);
        }
    }
    for (auto & [buft, ctx] : ctx_map) {
        ggml_backend_buffer_t buf = ggml_backend_alloc_ctx_tensors_from_buft(ctx, buft);
        if (!buf) {
            return false;
        }
        ggml_backend_buffer_set_usage(buf, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        LLAMA_LOG_INFO("first: routers of %d layers in %s memory\n", n_layer[buft], ggml_backend_buft_name(buft));
        routers.bufs.emplace_back(buf);
    }
    for (size_t i = 0; i < meta.layers.size(); i++) {
        const first_router & router = routers.by_layer[meta.layers[i]];
        ggml_backend_tensor_set(router.weight, meta.weight.data() + i*n_embd, 0, n_embd*sizeof(float));
        ggml_backend_tensor_set(router.bias,   meta.bias.data() + i,          0, sizeof(float));
        if (meta.rank > 0) {
            set_matrix(router.down, meta.down, i);
            set_matrix(router.up,   meta.up,   i);
            ggml_backend_tensor_set(router.shift, meta.shift.data() + i*n_embd, 0, n_embd*sizeof(float));
        }
    }
    return true;
}

static bool all_recurrent(const llama_model & model) {
    int32_t n_recurrent = 0;
    for (int32_t il = 0; il < first_model_n_layer(model); il++) {
        n_recurrent += model.hparams.is_recr(il);
    }
    return n_recurrent == first_model_n_layer(model);
}

// Architectures whose layers cannot be left out, by name, as not every llama.cpp knows all of them.
static const struct { const char * arch; const char * reason; } refused[] = {
    { "hrm_text",   "a layer's input is more than the output of the layer before" },
    { "kimi-k3",    "layers read the inputs of earlier layers" },
    { "minimax-01", "a layer rescales its input instead of adding to it" },
};

const char * first_model_refusal(const llama_model & model) {
    if (llama_model_has_encoder(&model)) {
        return "the model has an encoder";
    }
    if (!model.hparams.causal_attn) {
        return "the model's attention is not causal";
    }
    for (const auto & entry : refused) {
        if (model.arch_name() == entry.arch) {
            return entry.reason;
        }
    }
    return all_recurrent(model) ? "all of its layers are recurrent" : nullptr;
}

// Fills routers from the file; returns false and says why in routers.status.
static bool load(first_routers & routers, const gguf_context * gguf, const llama_model & model) {
    if (model.hparams.no_alloc) {
        routers.status = "the model was loaded without its weights";
        return false;
    }
    if (const char * reason = first_model_refusal(model)) {
        routers.status = reason;
        return false;
    }
    if (model.hparams.n_layer_nextn > 0) {
        routers.status = "the model has prediction layers, which routers are not yet made for";
        return false;
    }
    first_metadata meta;
    if (!first_metadata_read(gguf, first_model_n_layer(model), (int32_t) model.hparams.n_embd, meta, routers.status)) {
        return false;
    }
    if (!meta.base.empty() && meta.base != fingerprint(model)) {
        routers.status = "the routers were trained for another base model";
        return false;
    }
    for (int32_t il : meta.layers) {
        if (model.hparams.is_recr(il)) {
            routers.status = "layer " + std::to_string(il) + " is recurrent and cannot be skipped";
            return false;
        }
    }
    if (!place_routers(routers, meta, model)) {
        routers.status = "no memory for the routers";
        return false;
    }
    routers.threshold = meta.threshold;
    routers.norm_eps  = meta.norm_eps;
    routers.rank      = meta.rank;
    routers.layers    = meta.layers;
    return true;
}

//
// interface
//

std::shared_ptr<const first_routers> first_routers_load(const gguf_context * gguf, const llama_model & model) {
    auto routers = std::make_shared<first_routers>();
    if (!gguf || !first_metadata_present(gguf)) {
        routers->status = "the model file carries no routers";
        return routers;
    }
    routers->valid = load(*routers, gguf, model);
    if (!routers->valid) {
        LLAMA_LOG_WARN("first: routers ignored, running at full depth: %s\n", routers->status.c_str());
    }
    return routers;
}

int32_t first_model_n_layer(const llama_model & model) {
    return (int32_t) model.hparams.n_layer();
}

bool first_model_skippable(const llama_model & model, int32_t il) {
    if (il < 1 || il >= first_model_n_layer(model) || model.hparams.is_recr(il) || first_model_refusal(model)) {
        return false;
    }
    return !model.first || !model.first->valid || model.first->has(il);
}
