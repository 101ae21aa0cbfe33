#pragma once

// first-llama: skip the layers that a prompt does not need.
//
// These functions live in libllama next to upstream's own. They add no field to any public struct of llama.h,
// so a program compiled against stock llama.cpp keeps working; it finds the functions below by name.
//
// Vocabulary
//   router   a linear scorer of one layer; its score in (0, 1) is the probability that the layer is needed
//   prompt   rows evaluated at full depth, scored by the routers
//   decode   rows evaluated with the sequence's mask: a skipped layer passes its input on, or what stands in for it, and
//            only stores K and V
//   route    the scores (means over the prompt's tokens) and the mask of one sequence
//
// Functions that return int32_t return FIRST_OK (or a count >= 0) on success and a negative first_error otherwise.
// None of them may be called for a context while another thread is inside llama_decode with that context.

#include "llama.h"

#include <stdbool.h>
#include <stdint.h>

#define FIRST_ABI_VERSION 1

#ifdef __cplusplus
extern "C" {
#endif

enum first_mode {
    FIRST_MODE_OFF       = 0, // every row runs every layer; nothing is scored
    FIRST_MODE_THRESHOLD = 1, // skip the layers whose mean score is below the threshold
    FIRST_MODE_BUDGET    = 2, // skip the lowest-scored layers, at most a given fraction of all layers
    FIRST_MODE_LIST      = 3, // skip the layers that the caller listed; needs no routers
};

enum first_phase {
    FIRST_PHASE_AUTO   = 0, // a sequence's rows in a batch are decode if it has scores and all of them request output
    FIRST_PHASE_PROMPT = 1, // every following row is a prompt row
    FIRST_PHASE_DECODE = 2, // every following row is a decode row
};

enum first_error {
    FIRST_OK                   =  0,
    FIRST_ERROR_ARGUMENT       = -1, // null pointer, or a value out of its range
    FIRST_ERROR_NO_ROUTERS     = -2, // the model carries no valid routers, and the mode needs them
    FIRST_ERROR_LAYER          = -3, // a listed layer may not be skipped (see first_skippable)
    FIRST_ERROR_NO_ROUTE       = -4, // the sequence has no scores (yet)
    FIRST_ERROR_BUFFER         = -5, // the caller's array is too short
};

// ---- handshake ------------------------------------------------------------------------------------------------

// FIRST_ABI_VERSION of the library. A caller compiled against another version must not call anything else.
LLAMA_API int32_t first_abi_version(void);

// The llama.cpp commit that the library was built from, e.g. "0c1e57098".
LLAMA_API const char * first_upstream_commit(void);

// ---- the model ------------------------------------------------------------------------------------------------

// True if the model file carries routers and they are valid for this model.
LLAMA_API bool first_available(const struct llama_model * model);

// Why first_available is false: "" when it is true, else one line. Valid as long as the model.
LLAMA_API const char * first_status(const struct llama_model * model);

// Number of layers of the model that the graph builds (n_layer).
LLAMA_API int32_t first_n_layer(const struct llama_model * model);

// True if layer il may be skipped: not the first one, not recurrent, and listed by the file if it has routers.
LLAMA_API bool first_skippable(const struct llama_model * model, int32_t il);

// The threshold that the model file suggests; NAN without routers.
LLAMA_API float first_model_threshold(const struct llama_model * model);

// ---- settings of a context ------------------------------------------------------------------------------------
// A new context starts in FIRST_MODE_THRESHOLD with the file's threshold if the model has routers, else in
// FIRST_MODE_OFF; the environment variable FIRST_SKIP (as first_set_skip takes it) says otherwise, for programs that
// know nothing of these functions. Changing a setting makes every sequence decide anew at its next decode row.

// FIRST_MODE_THRESHOLD and FIRST_MODE_BUDGET: FIRST_ERROR_NO_ROUTERS if the model has none.
LLAMA_API int32_t first_set_mode(struct llama_context * ctx, enum first_mode mode);
LLAMA_API enum first_mode first_get_mode(const struct llama_context * ctx);

// Threshold in (0, 1), for FIRST_MODE_THRESHOLD. NAN restores the file's.
LLAMA_API int32_t first_set_threshold(struct llama_context * ctx, float threshold);

// Fraction of all layers in [0, 1], for FIRST_MODE_BUDGET: floor(fraction * n_layer) layers are skipped.
LLAMA_API int32_t first_set_budget(struct llama_context * ctx, float fraction);

// Layers for FIRST_MODE_LIST (any order, no duplicates needed). Refused as a whole with FIRST_ERROR_LAYER if one of
// them is not skippable or if no layer of some attention type would remain.
LLAMA_API int32_t first_set_mask(struct llama_context * ctx, const int32_t * layers, int32_t n_layers);

// All of the above as people write it: "auto" (the file's threshold; off if it has no routers), "off", a fraction with a
// point ("0.2"), or layers ("3,5,7"). Anything else is refused, the settings stay, and the log says why.
LLAMA_API int32_t first_set_skip(struct llama_context * ctx, const char * skip);

// What the following batches are. Callers that know should say so: a prompt evaluated one token at a time looks
// like decoding to FIRST_PHASE_AUTO.
LLAMA_API int32_t first_set_phase(struct llama_context * ctx, enum first_phase phase);

// The same for the rows of one sequence, whatever first_set_phase says of the others; FIRST_PHASE_AUTO takes it back.
LLAMA_API int32_t first_set_seq_phase(struct llama_context * ctx, llama_seq_id seq_id, enum first_phase phase);

// ---- the route of a sequence ----------------------------------------------------------------------------------

// Mean scores of the prompt rows that are in the sequence's cache, one per layer; NAN for layers without a router.
// n_scores must be at least first_n_layer. Returns the number of prompt tokens behind the means.
// Waits for computations in flight.
LLAMA_API int32_t first_get_scores(struct llama_context * ctx, llama_seq_id seq_id, float * scores, int32_t n_scores);

// The mask that decode rows of the sequence get under the current settings, one byte per layer, 1 = skipped.
// Tokens removed from the middle of the cache (a context shift) leave it as it is until the next prompt rows.
// n_mask must be at least first_n_layer. Returns the number of skipped layers.
LLAMA_API int32_t first_get_mask(struct llama_context * ctx, llama_seq_id seq_id, uint8_t * mask, int32_t n_mask);

// Position of the first cached row of the sequence that was evaluated as an answer's, or -1 if there is none. Rows before it
// are what any evaluation of the same tokens gives; a caller who wants the same of what comes later evaluates it again.
LLAMA_API llama_pos first_get_answer_pos(struct llama_context * ctx, llama_seq_id seq_id);

// Forget the scores and routes of all sequences. Cached tokens stay in the KV cache; until they are evaluated again
// their sequences run at full depth.
LLAMA_API void first_reset(struct llama_context * ctx);

#ifdef __cplusplus
}
#endif
