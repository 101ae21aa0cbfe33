#pragma once

// What one graph is to do. Part of llm_graph_params, and so of the key that decides whether a graph is reused.

#include <cstdint>
#include <memory>
#include <vector>

struct first_routers;

// What becomes of one layer in one ubatch.
enum first_layer_use : uint8_t {
    FIRST_LAYER_RUN  = 0, // every row runs it
    FIRST_LAYER_SKIP = 1, // no row runs it: not built, but for K and V
    FIRST_LAYER_MIX  = 2, // built for all rows; those that skip it take their input on, or their stand-in
};

// Which rows of a ubatch skip which layers. Not part of the key: a reused graph reads it anew for each ubatch.
struct first_row_masks {
    int32_t n_layer = 0;
    std::vector<uint8_t> skip; // [n_tokens * n_layer], 1 = the row skips the layer

    void resize(int32_t n_tokens, int32_t new_n_layer) {
        n_layer = new_n_layer;
        skip.assign((size_t) n_tokens*n_layer, 0);
    }

    uint8_t * row(int32_t i) {
        return skip.data() + (size_t) i*n_layer;
    }

    bool skips(int32_t i, int32_t il) const {
        return skip[(size_t) i*n_layer + il];
    }
};

struct first_plan {
    std::shared_ptr<const first_routers> routers; // not null: score every row of this graph
    std::shared_ptr<const first_routers> stand_ins; // not null: skipped layers that have a stand-in get it
    std::vector<uint8_t>                 layers;  // [n_layer] first_layer_use; empty = every row runs every layer

    const first_row_masks * rows = nullptr;       // of the ubatch in flight; outlives every graph of the context

    first_layer_use use(int32_t il) const {
        return il >= 0 && il < (int32_t) layers.size() ? (first_layer_use) layers[il] : FIRST_LAYER_RUN;
    }

    bool operator==(const first_plan & other) const {
        return routers == other.routers && stand_ins == other.stand_ins && layers == other.layers && rows == other.rows;
    }
};
