/* Continues a text with a GGUF file and says which layers the text did not need.
 *
 *     ./first MODEL.gguf PROMPT [SKIP] [N]
 *
 * SKIP is auto (default), off, a fraction such as 0.2, or layers such as 3,5,7; N the number of tokens at most.
 * The text goes to standard output, the route to standard error. The likeliest token is taken each time. */

#include "first.h"
#include "llama.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fail(int code, const char * what) {
    fprintf(stderr, "error: %s\n", what);
    exit(code);
}

static void log_warnings(enum ggml_log_level level, const char * text, void * data) {
    (void) data;
    if (level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

/* The layers that the answer leaves out, and each layer's mean score over the prompt ("-" without a router). */
static void print_route(struct llama_context * ctx, const struct llama_model * model) {
    const int32_t n_layer   = first_n_layer(model);
    uint8_t *     mask      = calloc(n_layer, sizeof(*mask));
    float *       scores    = calloc(n_layer, sizeof(*scores));
    const int32_t n_skipped = first_get_mask(ctx, 0, mask, n_layer);
    const int32_t n_scored  = first_get_scores(ctx, 0, scores, n_layer);

    fprintf(stderr, "skipped %d of %d layers:", n_skipped > 0 ? n_skipped : 0, n_layer);
    for (int32_t il = 0; il < n_layer; il++) {
        if (n_skipped > 0 && mask[il]) {
            fprintf(stderr, " %d", il);
        }
    }
    fprintf(stderr, "\nscores:");
    for (int32_t il = 0; il < n_layer; il++) {
        if (n_scored > 0 && !isnan(scores[il])) {
            fprintf(stderr, " %.6f", scores[il]);
        } else {
            fprintf(stderr, " -");
        }
    }
    fprintf(stderr, "\n");
    free(mask);
    free(scores);
}

static void answer(struct llama_context * ctx, const struct llama_model * model, struct llama_batch batch, int n) {
    const struct llama_vocab * vocab   = llama_model_get_vocab(model);
    struct llama_sampler *     sampler = llama_sampler_init_greedy();

    first_set_phase(ctx, FIRST_PHASE_PROMPT); /* every layer runs, and the routers score */
    for (int i = 0; i < n; i++) {
        if (llama_decode(ctx, batch) != 0) {
            fail(1, "llama_decode failed");
        }
        if (i == 0) {
            print_route(ctx, model);
            first_set_phase(ctx, FIRST_PHASE_DECODE); /* from now on, those layers are left out */
        }
        llama_token token = llama_sampler_sample(sampler, ctx, -1);
        if (llama_vocab_is_eog(vocab, token)) {
            break;
        }
        char      piece[256];
        const int length = llama_token_to_piece(vocab, token, piece, sizeof(piece), 0, false);
        if (length > 0) {
            fwrite(piece, 1, length, stdout);
            fflush(stdout);
        }
        batch          = llama_batch_get_one(batch.token, 1);
        batch.token[0] = token;
    }
    printf("\n");
    llama_sampler_free(sampler);
}

int main(int argc, char ** argv) {
    if (argc < 3) {
        fail(2, "usage: first MODEL.gguf PROMPT [SKIP] [N]");
    }
    const int n = argc > 4 ? atoi(argv[4]) : 64;
    if (first_abi_version() != FIRST_ABI_VERSION) {
        fail(1, "compiled for another version of first-llama; compile it again");
    }
    llama_log_set(log_warnings, NULL);
    llama_backend_init();
    struct llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        fail(1, "the model cannot be loaded");
    }

    const struct llama_vocab * vocab    = llama_model_get_vocab(model);
    const int32_t              length   = (int32_t) strlen(argv[2]);
    const int32_t              n_prompt = -llama_tokenize(vocab, argv[2], length, NULL, 0, true, true);
    if (n < 1 || n_prompt < 1) {
        fail(2, "the prompt must have a token, and N be 1 or more");
    }
    llama_token * tokens = calloc(n_prompt, sizeof(*tokens));
    llama_tokenize(vocab, argv[2], length, tokens, n_prompt, true, true);

    struct llama_context_params params = llama_context_default_params();
    params.n_ctx                       = n_prompt + n;
    params.n_batch                     = n_prompt; /* the whole prompt in one call */
    struct llama_context * ctx         = llama_init_from_model(model, params);
    if (!ctx) {
        fail(1, "no context for this model");
    }
    if (first_set_skip(ctx, argc > 3 ? argv[3] : "auto") != FIRST_OK) {
        fail(2, "SKIP is refused; the line above says why");
    }
    answer(ctx, model, llama_batch_get_one(tokens, n_prompt), n);

    free(tokens);
    llama_free(ctx);
    llama_model_free(model);
    llama_backend_free();
    return 0;
}
