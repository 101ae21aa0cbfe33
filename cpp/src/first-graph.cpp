#include "first-graph.h"

#include "first-routers.h"

#include "llama-graph.h"

#include "ggml.h"

void first_graph::begin(const first_plan & new_plan) {
    plan     = new_plan;
    last_out = nullptr;
    last_il  = -1;
    scores.clear();
    skipped.assign(plan.skip.size(), 0);
}

void first_expand(const llm_graph_context & gctx, ggml_tensor * cur, int il) {
    if (!gctx.res->first.plan.skips(il)) {
        ggml_build_forward_expand(gctx.gf, cur);
    }
}

// The row selection that the model's last layer applies, or null if the graph has none.
static ggml_tensor * find_out_ids(const llm_graph_result & res) {
    for (const auto & input : res.inputs) {
        if (const auto * out = dynamic_cast<const llm_graph_input_out_ids *>(input.get())) {
            return out->out_ids;
        }
    }
    return nullptr;
}

// What the skipped layer passes on: its input, restricted to the output rows if the layer would have done so.
// Null if the input is not known or has another shape, in which case the layer is not skipped.
static ggml_tensor * bypass(const llm_graph_context & gctx, ggml_tensor * cur, int il) {
    const first_graph & graph = gctx.res->first;
    ggml_tensor * inp = graph.last_out;
    if (!inp || graph.last_il != il - 1 || inp->type != cur->type || inp->ne[0] != cur->ne[0] ||
        inp->ne[2] != cur->ne[2] || inp->ne[3] != cur->ne[3]) {
        return nullptr;
    }
    if (inp->ne[1] == cur->ne[1]) {
        return inp;
    }
    ggml_tensor * out_ids = find_out_ids(*gctx.res);
    if (!out_ids || out_ids->ne[0] != cur->ne[1]) {
        return nullptr;
    }
    return ggml_get_rows(gctx.ctx0, inp, out_ids);
}

// score(token) = sigmoid(weight . norm(x) + bias), docs/format.md
static void build_router(const llm_graph_context & gctx, ggml_tensor * inp, int il) {
    first_graph & graph = gctx.res->first;
    const first_routers & routers = *graph.plan.routers;
    if (!routers.has(il) || inp->ne[0] != routers.by_layer[il].weight->ne[0] || inp->ne[1] != gctx.n_tokens ||
        inp->ne[2] != 1 || inp->ne[3] != 1) {
        return;
    }
    ggml_tensor * cur = inp;
    if (routers.norm_eps > 0.0f) {
        cur = ggml_rms_norm(gctx.ctx0, cur, routers.norm_eps);
    }
    cur = ggml_mul_mat(gctx.ctx0, routers.by_layer[il].weight, cur);
    cur = ggml_add(gctx.ctx0, cur, routers.by_layer[il].bias);
    cur = ggml_sigmoid(gctx.ctx0, cur);
    ggml_format_name(cur, "first_score-%d", il);
    ggml_set_output(cur);
    ggml_build_forward_expand(gctx.gf, cur);
    graph.scores.emplace_back(il, cur);
}

ggml_tensor * first_layer_end(const llm_graph_context & gctx, ggml_tensor * cur, int il) {
    first_graph & graph = gctx.res->first;
    if (graph.plan.skips(il)) {
        if (ggml_tensor * inp = bypass(gctx, cur, il)) {
            cur = inp;
            graph.skipped[il] = 1;
        }
    }
    graph.last_out = cur;
    graph.last_il  = il;
    if (graph.plan.routers) {
        build_router(gctx, cur, il + 1);
    }
    return cur;
}

void first_graph_end(llm_graph_result & res) {
    if (res.first.plan.skip.empty()) {
        return;
    }
    ggml_context * ctx = res.get_ctx();
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
        if (t->op == GGML_OP_NONE && (t->flags & GGML_TENSOR_FLAG_INPUT)) {
            ggml_build_forward_expand(res.get_gf(), t);
        }
    }
}
