// Tiny random models of every architecture, as GGUF files:
//
//     make_models list                 one line for each model: architecture, dense or moe, tested or left-out
//     make_models ARCH dense|moe FILE  writes one model
//
// What makes a model of an architecture small and valid is known to llama.cpp's own test of architectures. CMake copies
// that test out of the pinned tree with more layers (CMakeLists.txt), and this file includes the copy: its metadata and
// its random weights are used as they are. Only the way into a file is ours, as upstream's does not know every architecture.

#define main upstream_main
#include "test-llama-archs-deep.cpp"
#undef main

#include "../src/llama-model.h"

#include <memory>
#include <set>

// As upstream's loops over llm_arch_all do.
static bool tested_upstream(llm_arch arch) {
    return arch_supported(arch) && arch != LLM_ARCH_EAGLE3 && arch != LLM_ARCH_DFLASH;
}

static void list_models() {
    for (const llm_arch arch : llm_arch_all()) {
        for (const bool moe : { false, true }) {
            if (arch != LLM_ARCH_UNKNOWN && (moe ? moe_implemented(arch) : !moe_mandatory(arch))) {
                printf("%s %s %s\n", llm_arch_name(arch), moe ? "moe" : "dense", tested_upstream(arch) ? "tested" : "left-out");
            }
        }
    }
}

// What upstream's metadata lacks, or has for two layers only.
static void complete(gguf_context * metadata, llm_arch arch) {
    const std::string key = std::string(llm_arch_name(arch)) + ".block_count";
    const size_t n_layer = gguf_get_val_u32(metadata, gguf_find_key(metadata, key.c_str()));
    if (arch == LLM_ARCH_GEMMA4) { // a period is not enough
        std::vector<int8_t> pattern(n_layer);
        for (size_t il = 0; il < n_layer; il++) {
            pattern[il] = il % 2 == 0;
        }
        gguf_set_arr_data(metadata, "gemma4.attention.sliding_window_pattern", GGUF_TYPE_BOOL, pattern.data(), n_layer);
    }
    if (arch == LLM_ARCH_BAILINGMOE3) {
        for (const char * name : { "bailingmoe3.swiglu_clamp_exp", "bailingmoe3.swiglu_clamp_shexp" }) {
            const std::vector<float> clamp(n_layer, 4.0f);
            gguf_set_arr_data(metadata, name, GGUF_TYPE_FLOAT32, clamp.data(), n_layer);
        }
        gguf_remove_key(metadata, "bailingmoe3.kda.safe_gate"); // as upstream does before it runs this model
    }
}

// The metadata that the model was made from, and its tensors.
static bool write_model(const gguf_context * metadata, const llama_model * model, const char * path) {
    gguf_context_ptr out(gguf_init_empty());
    gguf_set_kv(out.get(), metadata);
    std::set<std::string> written;
    for (const auto & [name, tensor] : llama_internal_get_tensor_map(model)) {
        if (written.insert(tensor->name).second) { // some are listed once for each layer that reads them
            gguf_add_tensor(out.get(), tensor);
        }
    }
    return gguf_write_to_file(out.get(), path, /*only_meta =*/ false);
}

static int make_model(const std::string & name, bool moe, const char * path) {
    const llm_arch arch = llm_arch_from_string(name);
    if (arch == LLM_ARCH_UNKNOWN) {
        fprintf(stderr, "error: there is no architecture %s\n", name.c_str());
        return 2;
    }
    gguf_context_ptr metadata = get_gguf_ctx(arch, moe);
    complete(metadata.get(), arch);
    tensor_data_params random = { /*seed =*/ 1, /*stdev =*/ 0.1f };
    llama_model_params params = llama_model_default_params();
    llama_model_ptr model(llama_model_init_from_user(metadata.get(), set_tensor_data, &random, params));
    if (!model || !write_model(metadata.get(), model.get(), path)) {
        fprintf(stderr, "error: no model of %s\n", name.c_str());
        return 1;
    }
    return 0;
}

int main(int argc, char ** argv) {
    if (argc == 2 && strcmp(argv[1], "list") == 0) {
        list_models();
        return 0;
    }
    if (argc != 4) {
        fprintf(stderr, "usage: make_models list | ARCH dense|moe FILE\n");
        return 2;
    }
    try {
        return make_model(argv[1], strcmp(argv[2], "moe") == 0, argv[3]);
    } catch (const std::exception & error) {
        fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
