#pragma once

// What llama-server says about skipped layers: in the timings of a response, and in /metrics.

#include "first.h"
#include "llama.h"

#include "json.h"

#include <cstdint>
#include <limits>
#include <ostream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

// The route of a slot's sequence. A slot reads prompts and answers in turn, and says which: of a prompt that is in the
// cache but for its last token there is one new row, which looks like decode.
struct first_server_route {
    int32_t              n_layer = 0;
    std::vector<int32_t> skipped;

    static void prompt(llama_context * ctx, llama_seq_id seq_id) {
        first_set_seq_phase(ctx, seq_id, FIRST_PHASE_PROMPT);
    }

    // where the rows end that any evaluation of the same tokens would give
    static llama_pos answer_pos(llama_context * ctx, llama_seq_id seq_id) {
        const llama_pos pos = first_get_answer_pos(ctx, seq_id);
        return pos < 0 ? std::numeric_limits<llama_pos>::max() : pos;
    }

    // once the prompt is evaluated
    void answer(llama_context * ctx, llama_seq_id seq_id) {
        first_set_seq_phase(ctx, seq_id, FIRST_PHASE_DECODE);
        n_layer = first_n_layer(llama_get_model(ctx));
        skipped.clear();
        std::vector<uint8_t> mask(n_layer);
        if (first_get_mask(ctx, seq_id, mask.data(), n_layer) > 0) {
            for (int32_t il = 0; il < n_layer; il++) {
                if (mask[il]) {
                    skipped.push_back(il);
                }
            }
        }
    }

    common_json to_json() const {
        return common_json {
            {"n_layer", n_layer},
            {"skipped", skipped},
        };
    }
};

// A cumulative histogram of Prometheus, in seconds.
class first_histogram {
public:
    explicit first_histogram(std::vector<double> bounds) : bounds(std::move(bounds)), counts(this->bounds.size()) {}

    void add(double value) {
        n++;
        sum += value;
        for (size_t i = 0; i < bounds.size(); i++) {
            counts[i] += value <= bounds[i];
        }
    }

    void write(std::ostream & out, const char * name, const char * help) const {
        out << "# HELP llamacpp:" << name << " " << help << "\n# TYPE llamacpp:" << name << " histogram\n";
        for (size_t i = 0; i < bounds.size(); i++) {
            out << "llamacpp:" << name << "_bucket{le=\"" << bounds[i] << "\"} " << counts[i] << "\n";
        }
        out << "llamacpp:" << name << "_bucket{le=\"+Inf\"} " << n << "\n"
            << "llamacpp:" << name << "_sum " << sum << "\n"
            << "llamacpp:" << name << "_count " << n << "\n";
    }

private:
    std::vector<double>   bounds;
    std::vector<uint64_t> counts;
    uint64_t n   = 0;
    double   sum = 0.0;
};

// Since the server started, over answers that have ended (cancelled ones too).
class first_server_metrics {
public:
    // n_steps: decode steps, which do not count the token that the prompt gave
    void add(const first_server_route & route, uint64_t n_steps, double prompt_seconds, double decode_seconds) {
        n_requests++;
        n_layers         += n_steps*route.n_layer;
        n_layers_skipped += n_steps*route.skipped.size();
        ttft.add(prompt_seconds);
        if (n_steps > 0) {
            tpot.add(decode_seconds/n_steps);
        }
    }

    std::string to_prometheus() const {
        std::ostringstream out;
        write(out, "first_requests_total",       "Answers that have ended",                            n_requests);
        write(out, "first_layers_total",         "Layers of the model, summed over decode steps",      n_layers);
        write(out, "first_layers_skipped_total", "Layers that decode steps left out",                  n_layers_skipped);
        ttft.write(out, "first_ttft_seconds", "Time from the start of a slot's prompt to its first token");
        tpot.write(out, "first_tpot_seconds", "Mean time of a decode step, by answer");
        return out.str();
    }

private:
    static void write(std::ostream & out, const char * name, const char * help, uint64_t value) {
        out << "# HELP llamacpp:" << name << " " << help << "\n# TYPE llamacpp:" << name << " counter\nllamacpp:"
            << name << " " << value << "\n";
    }

    uint64_t n_requests       = 0;
    uint64_t n_layers         = 0;
    uint64_t n_layers_skipped = 0;
    first_histogram ttft{{0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100}};
    first_histogram tpot{{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5}};
};
