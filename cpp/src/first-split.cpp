// Which sequences of a batch share a ubatch. Whatever is answered, every row gets what it would get alone: it is about time.

#include "first-context.h"

#include "first-parse.h"

#include "llama-impl.h"
#include "llama-model.h"

#include "ggml-backend.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

// The output matrix, which every ubatch with outputs runs, in layers of the same bytes.
static float output_layers(const llama_model & model, int32_t n_layer) {
    size_t in_layers = 0;
    for (const auto & [name, tensor] : model.tensors_by_name) {
        if (name.rfind("blk.", 0) == 0) {
            in_layers += ggml_nbytes(tensor);
        }
    }
    const ggml_tensor * output = model.output ? model.output : model.tok_embd;
    return output && in_layers > 0 ? (float) n_layer*ggml_nbytes(output)/in_layers : 0.0f;
}

// Rows of a batch are close to free on other devices, and reading the layers again is not.
static bool on_cpu(const llama_model & model, int32_t n_layer) {
    for (int32_t il = 0; il < n_layer; il++) {
        if (ggml_backend_dev_type(model.dev_layer(il)) != GGML_BACKEND_DEVICE_TYPE_CPU) {
            return false;
        }
    }
    return true;
}

// FIRST_SPLIT=off keeps batches as llama.cpp makes them; a number stands for what this device's pace is found to be.
void first_context::init_split(const llama_model & model) {
    const char * split = std::getenv("FIRST_SPLIT");
    splits      = !(split && std::strcmp(split, "off") == 0) && on_cpu(model, table.n_layer());
    output_cost = output_layers(model, table.n_layer());
    float rows_by_hand;
    if (splits && split && first_parse_number(split, rows_by_hand)) {
        fixed_rows = rows_by_hand;
    } else if (splits && split) {
        LLAMA_LOG_WARN("first: FIRST_SPLIT=%s: give off, or what a batch costs besides its rows, in rows, such as 0.5\n", split);
    }
}

void first_context::time_ubatch(size_t n_rows) {
    if (ubatch_start_us == 0 || !splits) {
        return;
    }
    int32_t n_run = table.n_layer();
    for (uint8_t use : current.layers) {
        n_run -= use == FIRST_LAYER_SKIP;
    }
    pace.ran(n_rows, n_run + output_cost, (ggml_time_us() - ubatch_start_us)*1e-6f);
}

// The sequence that a row stands for; one of many is enough, as only the time depends on it.
static llama_seq_id first_of(const first_seq_set & set) {
    llama_seq_id id = 0;
    while (!set.test(id)) {
        id++;
    }
    return id;
}

// What the sequence's rows skip in this batch, or null: prompt rows, and an answer at full depth.
const first_mask * first_context::mask_in_batch(llama_seq_id seq_id) const {
    const auto rows_of = in_flight.find(seq_id);
    const auto seq     = sequences.find(seq_id);
    if (rows_of == in_flight.end() || seq == sequences.end() || !rows_of->second.decode || unsupported) {
        return nullptr;
    }
    for (uint8_t skip : seq->second.mask) {
        if (skip) {
            return &seq->second.mask;
        }
    }
    return nullptr;
}

// Layers that a ubatch of one row a sequence runs, weighed by its rows.
float first_context::cost(const std::vector<const first_mask *> & masks, float fixed) const {
    int32_t n_run = 0;
    for (int32_t il = 0; il < table.n_layer(); il++) {
        bool all_skip = true;
        for (const first_mask * mask : masks) {
            all_skip = all_skip && mask && (*mask)[il];
        }
        n_run += !all_skip;
    }
    return (n_run + output_cost)*(fixed + masks.size());
}

bool first_context::joins(const std::vector<first_seq_set> & group, const first_seq_set & other) const {
    if (group.empty() || !splits || in_flight.empty()) {
        return true;
    }
    const llama_seq_id id = first_of(other);
    const first_mask * mask = mask_in_batch(id);
    std::vector<const first_mask *> masks;
    bool differs = false;
    bool prompt  = !in_flight.count(id) || !in_flight.at(id).decode;
    for (const first_seq_set & set : group) {
        const llama_seq_id member = first_of(set);
        masks.push_back(mask_in_batch(member));
        differs = differs || !masks.back() != !mask || (mask && *masks.back() != *mask);
        prompt  = prompt  || !in_flight.count(member) || !in_flight.at(member).decode;
    }
    if (!differs) {
        return true;
    }
    if (prompt) {
        return false; // the prompt has a ubatch of its own anyway, as long as its rows go on
    }
    const float fixed = std::isnan(fixed_rows) ? pace.fixed_rows() : fixed_rows;
    if (!std::isfinite(fixed)) {
        return true;
    }
    const float apart = cost(masks, fixed) + cost({ mask }, fixed);
    masks.push_back(mask);
    return cost(masks, fixed) <= apart;
}
