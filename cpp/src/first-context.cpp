#include "first-context.h"

#include "first-graph.h"
#include "first-routers.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

first_context::first_context(llama_context & lctx, const llama_model & model) : lctx(lctx), routers(model.first) {
    if (!routers) {
        routers = std::make_shared<const first_routers>();
    }
    refusal = first_model_refusal(model);
    const int32_t n_layer = first_model_n_layer(model);
    for (int32_t il = 0; il < n_layer; il++) {
        table.kinds.push_back((model.hparams.is_swa(il) ? 1 : 0) + (model.hparams.is_recr(il) ? 2 : 0));
        table.skippable.push_back(first_model_skippable(model, il));
    }
    init_split(model);
    if (routers->valid && routers->rank > 0) {
        current.stand_ins = routers;
    }
    threshold = routers->threshold;
    mode      = routers->valid ? FIRST_MODE_THRESHOLD : FIRST_MODE_OFF;
    idle_plan();
    if (const char * skip = std::getenv("FIRST_SKIP")) {
        set_skip(skip); // a value that is refused leaves the default, and the log says why
    }
}

first_context::~first_context() = default;

int32_t first_context::n_router() const {
    return (int32_t) routers->layers.size();
}

bool first_context::scoring() const {
    return routers->valid && mode != FIRST_MODE_OFF && !unsupported;
}

// Graphs reserved between batches are prompt graphs, the largest ones.
void first_context::idle_plan() {
    current.routers = scoring() ? routers : nullptr;
    current.layers.clear();
    current.rows = &rows;
}

void first_context::warn_once(bool & said, const char * message) {
    if (!said) {
        LLAMA_LOG_WARN("first: %s\n", message);
        said = true;
    }
}

//
// settings
//

void first_context::undecide() {
    for (auto & [seq_id, seq] : sequences) {
        seq.decided = false;
    }
    idle_plan();
}

int32_t first_context::set_mode(first_mode new_mode) {
    if (new_mode < FIRST_MODE_OFF || new_mode > FIRST_MODE_LIST) {
        return FIRST_ERROR_ARGUMENT;
    }
    if (!routers->valid && (new_mode == FIRST_MODE_THRESHOLD || new_mode == FIRST_MODE_BUDGET)) {
        return FIRST_ERROR_NO_ROUTERS;
    }
    mode = new_mode;
    undecide();
    return FIRST_OK;
}

int32_t first_context::set_threshold(float value) {
    if (std::isnan(value)) {
        value = routers->threshold;
    }
    if (!routers->valid) {
        return FIRST_ERROR_NO_ROUTERS;
    }
    if (!(value > 0.0f && value < 1.0f)) {
        return FIRST_ERROR_ARGUMENT;
    }
    threshold = value;
    undecide();
    return FIRST_OK;
}

int32_t first_context::set_budget(float fraction) {
    if (!(fraction >= 0.0f && fraction <= 1.0f)) {
        return FIRST_ERROR_ARGUMENT;
    }
    budget = fraction;
    undecide();
    return FIRST_OK;
}

int32_t first_context::set_mask(const int32_t * layers, int32_t n_layers) {
    if (n_layers < 0 || (n_layers > 0 && !layers)) {
        return FIRST_ERROR_ARGUMENT;
    }
    if (n_layers > 0 && refusal) {
        LLAMA_LOG_ERROR("first: no layer of this model can be skipped: %s\n", refusal);
        return FIRST_ERROR_LAYER;
    }
    first_mask mask(table.n_layer(), 0);
    for (int32_t i = 0; i < n_layers; i++) {
        const int32_t il = layers[i];
        if (il < 0 || il >= table.n_layer() || !table.skippable[il]) {
            return FIRST_ERROR_LAYER;
        }
        mask[il] = 1;
    }
    if (!first_mask_keeps_every_kind(table, mask)) {
        return FIRST_ERROR_LAYER;
    }
    listed = std::move(mask);
    undecide();
    return FIRST_OK;
}

int32_t first_context::set_phase(first_phase value) {
    if (value < FIRST_PHASE_AUTO || value > FIRST_PHASE_DECODE) {
        return FIRST_ERROR_ARGUMENT;
    }
    phase = value;
    return FIRST_OK;
}

int32_t first_context::set_seq_phase(llama_seq_id seq_id, first_phase value) {
    if (value < FIRST_PHASE_AUTO || value > FIRST_PHASE_DECODE || seq_id < 0 || (uint32_t) seq_id >= lctx.n_seq_max()) {
        return FIRST_ERROR_ARGUMENT;
    }
    if (value == FIRST_PHASE_AUTO) {
        seq_phases.erase(seq_id);
    } else {
        seq_phases[seq_id] = value;
    }
    return FIRST_OK;
}

//
// routes
//

std::vector<float> first_context::scores_by_layer(const first_sequence & seq) const {
    const std::vector<float> means = seq.means(n_router());
    std::vector<float> scores(table.n_layer(), NAN);
    for (size_t i = 0; i < routers->layers.size(); i++) {
        scores[routers->layers[i]] = means[i];
    }
    return scores;
}

void first_context::decide(first_sequence & seq) {
    if (seq.decided) {
        return;
    }
    seq.mask.clear();
    if (mode == FIRST_MODE_LIST && !unsupported) {
        seq.mask = listed;
    } else if (mode != FIRST_MODE_OFF && !unsupported) {
        if (seq.n_prompt() == 0 || seq.has_unknown()) {
            warn_once(said_unscored, "cached tokens without router scores, running at full depth");
        } else {
            const std::vector<float> scores = scores_by_layer(seq);
            seq.mask = mode == FIRST_MODE_BUDGET ? first_mask_by_budget(table, scores, budget)
                                                 : first_mask_by_threshold(table, scores, threshold);
        }
    }
    if (std::find(seq.mask.begin(), seq.mask.end(), 1) == seq.mask.end()) {
        seq.mask.clear(); // nothing to skip: the very graph of the unpatched library
    }
    seq.decided = true;
}

int32_t first_context::get_scores(llama_seq_id seq_id, float * scores, int32_t n) {
    if (!scores) {
        return FIRST_ERROR_ARGUMENT;
    }
    if (n < table.n_layer()) {
        return FIRST_ERROR_BUFFER;
    }
    flush();
    const auto it = sequences.find(seq_id);
    if (it == sequences.end() || it->second.n_prompt() == 0) {
        return FIRST_ERROR_NO_ROUTE;
    }
    const std::vector<float> result = scores_by_layer(it->second);
    std::copy(result.begin(), result.end(), scores);
    return it->second.n_prompt();
}

int32_t first_context::get_mask(llama_seq_id seq_id, uint8_t * mask, int32_t n) {
    if (!mask) {
        return FIRST_ERROR_ARGUMENT;
    }
    if (n < table.n_layer()) {
        return FIRST_ERROR_BUFFER;
    }
    flush();
    std::fill(mask, mask + table.n_layer(), 0);
    const auto it = sequences.find(seq_id);
    if (it == sequences.end() && mode != FIRST_MODE_LIST) {
        return mode == FIRST_MODE_OFF ? 0 : FIRST_ERROR_NO_ROUTE;
    }
    first_sequence none;
    first_sequence & seq = it == sequences.end() ? none : it->second;
    decide(seq);
    std::copy(seq.mask.begin(), seq.mask.end(), mask);
    return (int32_t) std::count(mask, mask + table.n_layer(), 1);
}

llama_pos first_context::get_answer_pos(llama_seq_id seq_id) const {
    const auto it = sequences.find(seq_id);
    if (it == sequences.end()) {
        return -1;
    }
    const std::vector<first_row> & rows = it->second.rows;
    const auto answer = std::find(rows.begin(), rows.end(), FIRST_ROW_DECODE);
    return answer == rows.end() ? -1 : (llama_pos) (answer - rows.begin());
}

void first_context::reset() {
    flush();
    for (auto & [seq_id, seq] : sequences) {
        seq.forget_rows();
    }
}

//
// the cache
//

void first_context::clear() {
    flush();
    sequences.clear();
}

void first_context::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    flush();
    for (auto it = sequences.begin(); it != sequences.end(); ) {
        if (seq_id < 0 || it->first == seq_id) {
            it->second.cut(p0, p1, n_router());
        }
        it = it->second.rows.empty() ? sequences.erase(it) : std::next(it);
    }
}

void first_context::seq_cp(llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1) {
    flush();
    const auto it = sequences.find(src);
    if (it == sequences.end() || src == dst) {
        return;
    }
    const first_sequence & from = it->second;
    const int32_t n_pos = (int32_t) from.rows.size();
    const bool all = p0 <= 0 && (p1 < 0 || p1 >= n_pos);
    if (!lctx.get_cparams().kv_unified || (all && sequences.find(dst) == sequences.end())) {
        sequences[dst] = from; // without a unified cache each sequence has cells of its own, all of them replaced
        return;
    }
    first_sequence copy = sequences[dst];
    for (int32_t pos = std::max(p0, 0); pos < (p1 < 0 ? n_pos : std::min(p1, n_pos)); pos++) {
        copy.put(pos, from.rows[pos], from.scores.data() + (size_t) pos*n_router(), n_router());
    }
    copy.decided = false; // the same scores give the same mask
    sequences[dst] = std::move(copy);
}

void first_context::seq_keep(llama_seq_id seq_id) {
    flush();
    for (auto it = sequences.begin(); it != sequences.end(); ) {
        it = it->first == seq_id ? std::next(it) : sequences.erase(it);
    }
}

void first_context::seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos delta) {
    flush();
    for (auto & [id, seq] : sequences) {
        if (seq_id < 0 || id == seq_id) {
            seq.shift(p0, p1, delta, n_router());
        }
    }
}
