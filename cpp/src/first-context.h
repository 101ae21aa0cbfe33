#pragma once

// The state of one llama_context: settings, the scores and masks of its sequences, and the batch in flight
// (first-batch.cpp).
// llama_context owns it; its memory object points to it, so that whatever happens to the cache happens to the scores.

#include "first.h"

#include "first-pace.h"
#include "first-plan.h"
#include "first-route.h"

#include "llama-cparams.h"

#include "ggml-backend.h"

#include <bitset>
#include <cmath>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

struct llama_context;
struct llama_model;
struct llama_ubatch;
class  llm_graph_result;
class  llama_io_read_i;
class  llama_io_write_i;

// the sequences that a row belongs to
using first_seq_set = std::bitset<LLAMA_MAX_SEQ>;

class first_context {
public:
    first_context(llama_context & lctx, const llama_model & model);
    ~first_context();

    // ---- settings (first.h) ----

    int32_t set_mode(first_mode new_mode);
    int32_t set_threshold(float value);
    int32_t set_budget(float fraction);
    int32_t set_mask(const int32_t * layers, int32_t n_layers);
    int32_t set_phase(first_phase value);
    int32_t set_seq_phase(llama_seq_id seq_id, first_phase value);
    int32_t set_skip(const std::string & text); // first-skip.cpp

    first_mode get_mode() const { return mode; }

    int32_t get_scores(llama_seq_id seq_id, float * scores, int32_t n);
    int32_t get_mask(llama_seq_id seq_id, uint8_t * mask, int32_t n);
    void    reset();

    llama_pos get_answer_pos(llama_seq_id seq_id) const;

    // ---- decoding ----

    // The plan for graphs built now. Between ubatches: the largest prompt graph, for reserving memory.
    const first_plan & plan() const { return current; }

    // Before the batch is split: tells prompt from decode, sequence by sequence, and decides the routes of the latter.
    // plain: the context computes logits in the usual causal way; otherwise every row runs at full depth, unscored.
    void begin_batch(const llama_batch & batch, bool plain);

    // While it is split: whether rows of these sequences may join a ubatch that has rows of the group (first-split.cpp).
    bool joins(const std::vector<first_seq_set> & group, const first_seq_set & other) const;

    // Before each ubatch, whose rows llama.cpp has chosen and ordered: plans its graph.
    void begin_ubatch(const llama_ubatch & ubatch);

    // After each ubatch: starts to fetch its scores.
    void collect(const llm_graph_result & res, const llama_ubatch & ubatch, ggml_backend_sched_t sched);

    // ---- the cache ----

    void clear();
    void seq_rm  (llama_seq_id seq_id, llama_pos p0, llama_pos p1);
    void seq_cp  (llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1);
    void seq_keep(llama_seq_id seq_id);
    void seq_add (llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos delta);

    // first-state.cpp; seq_id -1: all sequences
    void state_write(llama_io_write_i & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0);
    void state_read (llama_io_read_i  & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0);

private:
    int32_t skip_auto();
    int32_t skip_fraction(const std::string & text);
    int32_t skip_layers(const std::string & text);

    // the rows of one sequence in the batch in flight
    struct batch_rows {
        llama_pos pos_min    = std::numeric_limits<llama_pos>::max();
        bool      all_output = true;
        bool      routed     = false; // skipping is on for this batch
        bool      decode     = false; // else prompt
    };

    struct scored_row {
        size_t       index; // in its ubatch
        llama_seq_id seq_id;
        llama_pos    pos;
    };

    // scores of one ubatch on their way from the device; resolved by flush
    struct pending_scores {
        size_t                  n_tokens;
        std::vector<scored_row> rows; // prompt rows, once for each of their sequences
        std::vector<float>      data; // [n_router * n_tokens], router by router
    };

    int32_t n_router() const;
    bool    scoring()  const;

    void begin_sequence(llama_seq_id seq_id, batch_rows & of_seq, bool routed);
    bool is_decode_row(const llama_ubatch & ubatch, int32_t i) const;
    void mask_row(const llama_ubatch & ubatch, int32_t i);

    void           write_sequence(llama_io_write_i & io, llama_seq_id seq_id, const first_sequence & seq) const;
    first_sequence read_sequence (llama_io_read_i  & io) const;
    void           read_sequences(llama_io_read_i  & io, llama_seq_id dst);

    void               init_split(const llama_model & model);
    const first_mask * mask_in_batch(llama_seq_id seq_id) const;
    float              cost(const std::vector<const first_mask *> & masks, float fixed) const;
    void               time_ubatch(size_t n_rows);

    void idle_plan();
    void flush();
    void decide(first_sequence & seq);
    void undecide();
    void warn_once(bool & said, const char * message);

    std::vector<float> scores_by_layer(const first_sequence & seq) const;

    llama_context & lctx;

    std::shared_ptr<const first_routers> routers; // never null; may be invalid
    first_layer_table table;
    const char *      refusal = nullptr; // why none of the layers may be skipped

    first_mode  mode      = FIRST_MODE_OFF;
    first_phase phase     = FIRST_PHASE_AUTO;
    float       threshold = 0.5f;
    float       budget    = 0.0f;
    first_mask  listed;

    std::map<llama_seq_id, first_sequence> sequences;
    std::map<llama_seq_id, first_phase>    seq_phases; // of those that somebody declared
    std::deque<pending_scores>             pending;

    std::map<llama_seq_id, batch_rows> in_flight; // empty if the batch is none of our business
    first_row_masks rows;                         // of the ubatch in flight; graphs keep a pointer to it
    first_plan      current;

    bool       splits      = false; // batches are split by mask where that is faster
    float      output_cost = 0.0f;  // the output matrix, in layers
    float      fixed_rows  = NAN;   // what somebody says of this device, or not a number: what is found
    first_pace pace;
    int64_t    ubatch_start_us = 0; // 0: its time says nothing of answers

    bool said_unscored    = false;
    bool said_unsupported = false;
    bool unsupported      = false; // this architecture's graphs do not pass through our hooks
};
