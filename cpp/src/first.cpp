// The public C API of first.h, on top of first_context and first_routers.

#include "first.h"

#include "first-context.h"
#include "first-routers.h"

#include "llama-context.h"
#include "llama-model.h"

#include <cmath>

#ifndef FIRST_UPSTREAM_COMMIT
#error "the build must define FIRST_UPSTREAM_COMMIT"
#endif

int32_t first_abi_version(void) {
    return FIRST_ABI_VERSION;
}

const char * first_upstream_commit(void) {
    return FIRST_UPSTREAM_COMMIT;
}

//
// the model
//

bool first_available(const llama_model * model) {
    return model && model->first && model->first->valid;
}

const char * first_status(const llama_model * model) {
    if (!model || !model->first) {
        return "no model is loaded";
    }
    return model->first->status.c_str();
}

int32_t first_n_layer(const llama_model * model) {
    return model ? first_model_n_layer(*model) : FIRST_ERROR_ARGUMENT;
}

bool first_skippable(const llama_model * model, int32_t il) {
    return model && first_model_skippable(*model, il);
}

float first_model_threshold(const llama_model * model) {
    return first_available(model) ? model->first->threshold : NAN;
}

//
// a context; contexts without a memory (encoders, embedding models) have no first_context
//

int32_t first_set_mode(llama_context * ctx, first_mode mode) {
    if (!ctx || !ctx->first) {
        return ctx && mode == FIRST_MODE_OFF ? FIRST_OK : FIRST_ERROR_ARGUMENT;
    }
    return ctx->first->set_mode(mode);
}

first_mode first_get_mode(const llama_context * ctx) {
    return ctx && ctx->first ? ctx->first->get_mode() : FIRST_MODE_OFF;
}

int32_t first_set_threshold(llama_context * ctx, float threshold) {
    return ctx && ctx->first ? ctx->first->set_threshold(threshold) : FIRST_ERROR_ARGUMENT;
}

int32_t first_set_budget(llama_context * ctx, float fraction) {
    return ctx && ctx->first ? ctx->first->set_budget(fraction) : FIRST_ERROR_ARGUMENT;
}

int32_t first_set_mask(llama_context * ctx, const int32_t * layers, int32_t n_layers) {
    return ctx && ctx->first ? ctx->first->set_mask(layers, n_layers) : FIRST_ERROR_ARGUMENT;
}

int32_t first_set_skip(llama_context * ctx, const char * skip) {
    return ctx && ctx->first && skip ? ctx->first->set_skip(skip) : FIRST_ERROR_ARGUMENT;
}

int32_t first_set_phase(llama_context * ctx, first_phase phase) {
    return ctx && ctx->first ? ctx->first->set_phase(phase) : FIRST_ERROR_ARGUMENT;
}

int32_t first_set_seq_phase(llama_context * ctx, llama_seq_id seq_id, first_phase phase) {
    return ctx && ctx->first ? ctx->first->set_seq_phase(seq_id, phase) : FIRST_ERROR_ARGUMENT;
}

int32_t first_get_scores(llama_context * ctx, llama_seq_id seq_id, float * scores, int32_t n_scores) {
    return ctx && ctx->first ? ctx->first->get_scores(seq_id, scores, n_scores) : FIRST_ERROR_ARGUMENT;
}

int32_t first_get_mask(llama_context * ctx, llama_seq_id seq_id, uint8_t * mask, int32_t n_mask) {
    return ctx && ctx->first ? ctx->first->get_mask(seq_id, mask, n_mask) : FIRST_ERROR_ARGUMENT;
}

llama_pos first_get_answer_pos(llama_context * ctx, llama_seq_id seq_id) {
    return ctx && ctx->first ? ctx->first->get_answer_pos(seq_id) : -1;
}

void first_reset(llama_context * ctx) {
    if (ctx && ctx->first) {
        ctx->first->reset();
    }
}
