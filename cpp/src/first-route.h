#pragma once

// Router scores of cached tokens and the decision made from them. Pure bookkeeping: no tensors, no graphs.

#include <cstdint>
#include <vector>

using first_mask = std::vector<uint8_t>; // [n_layer], 1 = skipped

// What is known of the token at one position of a sequence's cache.
enum first_row : uint8_t {
    FIRST_ROW_UNKNOWN = 0, // cached, but evaluated without scoring (skipping off, state loaded)
    FIRST_ROW_PROMPT  = 1, // scored at full depth
    FIRST_ROW_DECODE  = 2, // generated
};

// Scores of one sequence, kept per position so that cutting, chunking and prefix reuse never change a mean.
struct first_sequence {
    std::vector<first_row> rows;   // [n_pos]
    std::vector<float>     scores; // [n_pos * n_router]; meaningful where rows is PROMPT

    bool       decided = false;
    first_mask mask;

    void put(int32_t pos, first_row row, const float * row_scores, int32_t n_router);
    void cut(int32_t p0, int32_t p1, int32_t n_router);
    void shift(int32_t p0, int32_t p1, int32_t delta, int32_t n_router);
    void forget_rows();

    int32_t n_prompt() const;
    bool    has_unknown() const;

    // Means over the prompt rows, summed in double in order of position so that the chunking cannot matter.
    std::vector<float> means(int32_t n_router) const;
};

// Which layers may go, and which must stay together: kinds[il] is the attention type of layer il.
struct first_layer_table {
    std::vector<uint8_t> kinds;     // [n_layer]
    std::vector<uint8_t> skippable; // [n_layer]

    int32_t n_layer() const { return (int32_t) kinds.size(); }
};

// True if under the mask every attention type of the model keeps at least one layer. A type that disappears would
// leave a graph input unused, which llama.cpp does not survive.
bool first_mask_keeps_every_kind(const first_layer_table & table, const first_mask & mask);

// Layers whose score is below the threshold, lowest first, as long as every attention type keeps a layer.
// scores[il] is NAN for layers without a router.
first_mask first_mask_by_threshold(const first_layer_table & table, const std::vector<float> & scores, float threshold);

// The floor(fraction * n_layer) layers with the lowest scores, under the same condition.
first_mask first_mask_by_budget(const first_layer_table & table, const std::vector<float> & scores, float fraction);
