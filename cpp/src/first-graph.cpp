#include "first-graph.h"

#include "first-routers.h"

#include "llama-batch.h"
#include "llama-graph.h"
#include "llama-model.h"

#include "ggml-backend.h"
#include "ggml.h"

void first_graph::begin(const first_plan & new_plan) {
    plan     = new_plan;
    last_out = nullptr;
    last_il  = -1;
    scores.clear();
    done.assign(plan.layers.size(), FIRST_LAYER_RUN);
}

void first_expand(const llm_graph_context & gctx, ggml_tensor * cur, int il) {
    if (gctx.res->first.plan.use(il) != FIRST_LAYER_SKIP) {
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

// What a skipped layer passes on: its input, restricted to the output rows if the layer would have done so.
// Null if the input is not known or not one row a token (hyper-connections, AltUp), in which case nothing is skipped.
static ggml_tensor * bypass(const llm_graph_context & gctx, ggml_tensor * cur, int il) {
    const first_graph & graph = gctx.res->first;
    ggml_tensor * inp = graph.last_out;
    if (!inp || graph.last_il != il - 1 || inp->type != cur->type || inp->ne[0] != cur->ne[0] ||
        inp->ne[1] != gctx.n_tokens || inp->ne[2] != 1 || inp->ne[3] != 1 || cur->ne[2] != 1 || cur->ne[3] != 1) {
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

// For one mixed layer, which row of [inputs, outputs] each row of the layer's result is.
class first_input_select : public llm_graph_input_i {
public:
    first_input_select(const first_row_masks & masks, ggml_tensor * ids, int il, bool outputs_only) :
        masks(masks), ids(ids), il(il), outputs_only(outputs_only) {}

    void set_input(const llama_ubatch * ubatch) override {
        const int32_t n = (int32_t) ids->ne[0];
        std::vector<int32_t> data;
        for (int32_t i = 0; i < (int32_t) ubatch->n_tokens; i++) {
            if (!outputs_only || ubatch->output[i]) {
                const int32_t row = (int32_t) data.size();
                data.push_back(masks.skips(i, il) ? row : n + row);
            }
        }
        GGML_ASSERT((int32_t) data.size() == n);
        if (n > 0) {
            ggml_backend_tensor_set(ids, data.data(), 0, data.size()*sizeof(int32_t));
        }
    }

    // the plan is compared before; what else the shape depends on are the counts of tokens and outputs
    bool can_reuse(const llm_graph_params & params) override {
        return ids->ne[0] == (int64_t) (outputs_only ? params.n_outputs : params.ubatch.n_tokens);
    }

private:
    const first_row_masks & masks;
    ggml_tensor * ids; // I32 [n_rows]
    const int     il;
    const bool    outputs_only;
};

// Each row's input or output, by its mask. Rows are copied, never blended: neither rounding nor a NaN of a value that
// a row does not take can reach it. Null if the tensors are not plain rows.
static ggml_tensor * select_rows(const llm_graph_context & gctx, ggml_tensor * inp, ggml_tensor * cur, int il) {
    const int64_t n_rows = cur->ne[1];
    const bool all_rows = n_rows == gctx.n_tokens;
    if (cur->type != GGML_TYPE_F32 || cur->ne[2] != 1 || cur->ne[3] != 1 || !(all_rows || n_rows == gctx.n_outputs)) {
        return nullptr;
    }
    ggml_tensor * ids = ggml_new_tensor_1d(gctx.ctx0, GGML_TYPE_I32, n_rows);
    ggml_set_input(ids);
    ggml_format_name(ids, "first_select-%d", il);
    const first_row_masks & masks = *gctx.res->first.plan.rows;
    gctx.res->add_input(std::make_unique<first_input_select>(masks, ids, il, !all_rows));
    ggml_tensor * both = ggml_concat(gctx.ctx0, inp, cur, 1);
    ggml_format_name(both, "first_both-%d", il);
    return ggml_get_rows(gctx.ctx0, both, ids);
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

// What a skipped layer passes on if something stands in for it: x + up (down norm(x)) + shift, docs/format.md
static ggml_tensor * stand_in(const llm_graph_context & gctx, ggml_tensor * inp, int il) {
    const first_routers * routers = gctx.res->first.plan.stand_ins.get();
    if (!routers || !routers->has(il) || !routers->by_layer[il].down) {
        return inp;
    }
    const first_router & router = routers->by_layer[il];
    ggml_tensor * cur = inp;
    if (routers->norm_eps > 0.0f) {
        cur = ggml_rms_norm(gctx.ctx0, cur, routers->norm_eps);
    }
    cur = ggml_mul_mat(gctx.ctx0, router.down, cur);
    cur = ggml_mul_mat(gctx.ctx0, router.up, cur);
    cur = ggml_add(gctx.ctx0, cur, router.shift);
    cur = ggml_add(gctx.ctx0, cur, inp);
    ggml_format_name(cur, "first_stand_in-%d", il);
    return cur;
}

ggml_tensor * first_layer_end(const llm_graph_context & gctx, ggml_tensor * cur, int il) {
    first_graph & graph = gctx.res->first;
    const first_layer_use use = graph.plan.use(il);
    if (use != FIRST_LAYER_RUN) {
        ggml_tensor * inp = bypass(gctx, cur, il);
        if (inp) {
            inp = stand_in(gctx, inp, il);
        }
        if (inp && use == FIRST_LAYER_MIX) {
            inp = select_rows(gctx, inp, cur, il);
        }
        if (inp) {
            cur = inp;
            graph.done[il] = use;
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
    if (res.first.plan.layers.empty()) {
        return;
    }
    ggml_context * ctx = res.get_ctx();
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
        if (t->op == GGML_OP_NONE && (t->flags & GGML_TENSOR_FLAG_INPUT)) {
            ggml_build_forward_expand(res.get_gf(), t);
        }
    }
}

ggml_cgraph * first_build_graph(const llama_model & model, const llm_graph_params & params) {
    ggml_cgraph * gf = model.build_graph(params);
    if (!gf || params.res->first.done == params.first.layers) {
        return gf;
    }
    // some layers cannot be left out, and a mask that nobody decided would be worse than none
    llm_graph_params full = params;
    full.first.layers.clear();
    full.res->reset();
    return model.build_graph(full);
}
