#pragma once

// What one graph is to do. Part of llm_graph_params, and so of the key that decides whether a graph is reused.

#include <cstdint>
#include <memory>
#include <vector>

struct first_routers;

struct first_plan {
    std::shared_ptr<const first_routers> routers; // not null: score every row of this graph
    std::vector<uint8_t>                 skip;    // [n_layer], 1 = leave the layer out; empty = run every layer

    bool skips(int32_t il) const {
        return il >= 0 && il < (int32_t) skip.size() && skip[il];
    }

    bool operator==(const first_plan & other) const {
        return routers == other.routers && skip == other.skip;
    }
};
