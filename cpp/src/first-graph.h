#pragma once

// The graph side: called by llm_graph_context while it builds a graph. State of one build lives in first_graph, which
// is a member of llm_graph_result.

#include "first-plan.h"

#include <cstdint>
#include <utility>
#include <vector>

struct ggml_cgraph;
struct ggml_context;
struct ggml_tensor;
struct llama_model;
struct llm_graph_context;
struct llm_graph_params;
class  llm_graph_result;

struct first_graph {
    first_plan plan;

    // output of the last layer that ended, i.e. the input of the next one
    ggml_tensor * last_out = nullptr;
    int32_t       last_il  = -1;

    std::vector<std::pair<int32_t, ggml_tensor *>> scores; // layer, F32 [1, n_tokens]
    std::vector<uint8_t> done;                             // [n_layer] first_layer_use, what was built in fact

    void begin(const first_plan & new_plan);
};

// In place of ggml_build_forward_expand for nodes that a skipped layer does not compute (everything but its K and V).
void first_expand(const llm_graph_context & gctx, ggml_tensor * cur, int il);

// At the end of layer il, with its output: returns what the next layer gets, which is the layer's own input if the
// plan skips it (row by row if the rows differ), and adds the next layer's router if the plan scores.
ggml_tensor * first_layer_end(const llm_graph_context & gctx, ggml_tensor * cur, int il);

// When the graph is complete: allocates inputs that only skipped layers would have read. llama.cpp writes every input
// and would otherwise write through a null pointer.
void first_graph_end(llm_graph_result & res);

// In place of model.build_graph: if the graph could not leave out every layer of the plan, one of full depth instead.
ggml_cgraph * first_build_graph(const llama_model & model, const llm_graph_params & params);
