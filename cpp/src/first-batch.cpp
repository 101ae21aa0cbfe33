// The batch in flight: what its rows are, what each ubatch's graph is to do, and the scores that come back.

#include "first-context.h"

#include "first-graph.h"
#include "first-routers.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-graph.h"

#include <algorithm>
#include <limits>

//
// before the batch: prompt or decode?
//

void first_context::begin_batch(const llama_batch & batch, bool plain) {
    in_flight.clear();
    if (mode == FIRST_MODE_OFF && sequences.empty()) {
        return;
    }
    flush();
    for (int32_t i = 0; i < batch.n_tokens; i++) {
        for (int32_t s = 0; s < batch.n_seq_id[i]; s++) {
            batch_rows & of_seq = in_flight[batch.seq_id[i][s]];
            of_seq.pos_min    = std::min(of_seq.pos_min, batch.pos[i]);
            of_seq.all_output = of_seq.all_output && batch.logits[i];
        }
    }
    for (auto & [seq_id, of_seq] : in_flight) {
        begin_sequence(seq_id, of_seq, plain && mode != FIRST_MODE_OFF);
    }
}

void first_context::begin_sequence(llama_seq_id seq_id, batch_rows & of_seq, bool routed) {
    first_sequence & seq = sequences[seq_id];
    const auto declared = seq_phases.find(seq_id);
    const first_phase phase_of = declared == seq_phases.end() ? phase : declared->second;

    // a row at a position says that nothing later is cached, whoever removed it
    seq.cut(of_seq.pos_min, -1, n_router());

    // an answer that lost its prompt to a context shift goes on with the mask that it has
    const bool has_mask  = seq.decided && !seq.mask.empty();
    const bool has_route = mode == FIRST_MODE_LIST ? !seq.rows.empty() : seq.n_prompt() > 0 || has_mask;
    of_seq.routed = routed;
    of_seq.decode = routed && (phase_of == FIRST_PHASE_DECODE ||
                               (phase_of == FIRST_PHASE_AUTO && has_route && of_seq.all_output));
    if (of_seq.decode) {
        decide(seq);
    } else {
        seq.decided = false;
    }
}

//
// before each ubatch: the plan of its graph
//

// A row that several sequences share skips what all of them skip, and is a prompt row if it is one for any of them.
bool first_context::is_decode_row(const llama_ubatch & ubatch, int32_t i) const {
    for (int32_t s = 0; s < ubatch.n_seq_id[i]; s++) {
        if (!in_flight.at(ubatch.seq_id[i][s]).decode) {
            return false;
        }
    }
    return true;
}

void first_context::mask_row(const llama_ubatch & ubatch, int32_t i) {
    uint8_t * skip = rows.row(i);
    std::fill(skip, skip + rows.n_layer, 1);
    for (int32_t s = 0; s < ubatch.n_seq_id[i]; s++) {
        const first_mask & mask = sequences[ubatch.seq_id[i][s]].mask;
        for (int32_t il = 0; il < rows.n_layer; il++) {
            skip[il] = skip[il] && !mask.empty() && mask[il];
        }
    }
}

// What the layers are to do for these rows; empty if every row runs every layer.
static std::vector<uint8_t> layer_uses(const first_row_masks & rows, int32_t n_tokens) {
    std::vector<uint8_t> uses(rows.n_layer, FIRST_LAYER_RUN);
    bool plain = true;
    for (int32_t il = 0; il < rows.n_layer; il++) {
        int32_t n_skip = 0;
        for (int32_t i = 0; i < n_tokens; i++) {
            n_skip += rows.skips(i, il);
        }
        if (n_skip > 0) {
            uses[il] = n_skip == n_tokens ? FIRST_LAYER_SKIP : FIRST_LAYER_MIX;
            plain = false;
        }
    }
    if (plain) {
        uses.clear(); // the very graph of the unpatched library
    }
    return uses;
}

void first_context::begin_ubatch(const llama_ubatch & ubatch) {
    current.routers = nullptr;
    current.layers.clear();
    ubatch_start_us = 0;
    if (in_flight.empty()) {
        return;
    }
    const int32_t n_tokens = (int32_t) ubatch.n_tokens;
    rows.resize(n_tokens, table.n_layer());
    int32_t n_decode = 0;
    for (int32_t i = 0; i < n_tokens; i++) {
        if (is_decode_row(ubatch, i)) {
            n_decode++;
            if (!unsupported) {
                mask_row(ubatch, i);
            }
        } else if (scoring() && in_flight.at(ubatch.seq_id[i][0]).routed) {
            current.routers = routers;
        }
        for (int32_t s = 0; s < ubatch.n_seq_id[i]; s++) {
            const llama_seq_id seq_id = ubatch.seq_id[i][s];
            // prompt rows become PROMPT when their scores arrive
            const first_row row = in_flight.at(seq_id).decode ? FIRST_ROW_DECODE : FIRST_ROW_UNKNOWN;
            sequences[seq_id].put(ubatch.pos[i], row, nullptr, n_router());
        }
    }
    if (n_decode > 0) {
        current.layers = layer_uses(rows, n_tokens);
    }
    if (n_decode == n_tokens) {
        ubatch_start_us = ggml_time_us();
    }
}

//
// after each ubatch: its scores
//

void first_context::collect(const llm_graph_result & res, const llama_ubatch & ubatch, ggml_backend_sched_t sched) {
    time_ubatch(ubatch.n_tokens);
    const first_plan plan = current;
    idle_plan();
    if (in_flight.empty()) {
        return;
    }
    const first_graph & graph = res.first;
    if (graph.done != plan.layers || (plan.routers && graph.scores.size() != (size_t) n_router())) {
        unsupported = true;
        undecide();
        warn_once(said_unsupported, "this architecture's graph cannot skip layers, running at full depth");
        return;
    }
    if (!plan.routers) {
        return;
    }
    const size_t n_tokens = ubatch.n_tokens;
    pending.emplace_back();
    pending_scores & scores = pending.back();
    scores.n_tokens = n_tokens;
    for (size_t i = 0; i < n_tokens; i++) {
        for (int32_t s = 0; s < ubatch.n_seq_id[i]; s++) {
            const llama_seq_id seq_id = ubatch.seq_id[i][s];
            if (!in_flight.at(seq_id).decode) {
                scores.rows.push_back({ i, seq_id, ubatch.pos[i] });
            }
        }
    }
    scores.data.resize(graph.scores.size()*n_tokens);
    for (size_t i = 0; i < graph.scores.size(); i++) {
        ggml_tensor * t = graph.scores[i].second;
        ggml_backend_t backend = ggml_backend_sched_get_tensor_backend(sched, t);
        ggml_backend_tensor_get_async(backend, t, scores.data.data() + i*n_tokens, 0, n_tokens*sizeof(float));
    }
}

void first_context::flush() {
    if (pending.empty()) {
        return;
    }
    lctx.synchronize();
    std::vector<float> values(n_router());
    for (const pending_scores & scores : pending) {
        for (const scored_row & row : scores.rows) {
            for (size_t i = 0; i < values.size(); i++) {
                values[i] = scores.data[i*scores.n_tokens + row.index];
            }
            sequences[row.seq_id].put(row.pos, FIRST_ROW_PROMPT, values.data(), n_router());
        }
    }
    pending.clear();
}
