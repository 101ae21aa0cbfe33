// Scores in saved states (llama_state_*): written behind the memory's own data, only if the model has routers.
//
//   u32 magic, u32 n_router, u32 n_seq, then for each sequence: i32 seq_id, u32 n_pos, u8 rows[n_pos],
//   f32 scores[n_router] for each of the rows that is a prompt row
//
// A state without them (saved by the unpatched library) ends before; its sequences count as never scored.

#include "first-context.h"

#include "first-routers.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-io.h"

#include <cmath>
#include <stdexcept>

static const uint32_t FIRST_STATE_MAGIC = 0x31535246; // "FRS1"

template <typename T>
static void write_value(llama_io_write_i & io, T value) {
    io.write(&value, sizeof(value));
}

template <typename T>
static T read_value(llama_io_read_i & io) {
    T value;
    io.read(&value, sizeof(value));
    return value;
}

// A part of a state (the windows of sliding-window layers) goes with rows that stay in the cache.
static bool is_whole(llama_state_seq_flags flags) {
    return (flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) == 0;
}

void first_context::write_sequence(llama_io_write_i & io, llama_seq_id seq_id, const first_sequence & seq) const {
    write_value<int32_t>(io, seq_id);
    write_value<uint32_t>(io, (uint32_t) seq.rows.size());
    io.write(seq.rows.data(), seq.rows.size()*sizeof(first_row));
    for (size_t pos = 0; pos < seq.rows.size(); pos++) {
        if (seq.rows[pos] == FIRST_ROW_PROMPT) {
            io.write(seq.scores.data() + pos*n_router(), n_router()*sizeof(float));
        }
    }
}

void first_context::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    if (!routers->valid || !is_whole(flags)) {
        return;
    }
    flush();
    uint32_t n_seq = 0;
    for (const auto & [id, seq] : sequences) {
        n_seq += seq_id < 0 || id == seq_id;
    }
    write_value(io, FIRST_STATE_MAGIC);
    write_value<uint32_t>(io, n_router());
    write_value(io, n_seq);
    for (const auto & [id, seq] : sequences) {
        if (seq_id < 0 || id == seq_id) {
            write_sequence(io, id, seq);
        }
    }
}

// Nothing that the file says is believed: a state may come from anywhere.
first_sequence first_context::read_sequence(llama_io_read_i & io) const {
    const uint32_t n_pos = read_value<uint32_t>(io);
    if (n_pos > lctx.n_ctx()) {
        throw std::runtime_error("more tokens than the context has");
    }
    std::vector<uint8_t> rows(n_pos);
    io.read(rows.data(), rows.size());
    first_sequence seq;
    std::vector<float> scores(n_router());
    for (uint32_t pos = 0; pos < n_pos; pos++) {
        if (rows[pos] > FIRST_ROW_DECODE) {
            throw std::runtime_error("unknown kind of row");
        }
        const bool scored = rows[pos] == FIRST_ROW_PROMPT;
        if (scored) {
            io.read(scores.data(), scores.size()*sizeof(float));
            for (float score : scores) {
                if (!(score >= 0.0f && score <= 1.0f)) {
                    throw std::runtime_error("a score out of its range");
                }
            }
        }
        seq.put(pos, (first_row) rows[pos], scored ? scores.data() : nullptr, n_router());
    }
    return seq;
}

void first_context::read_sequences(llama_io_read_i & io, llama_seq_id dst) {
    if (read_value<uint32_t>(io) != FIRST_STATE_MAGIC || read_value<uint32_t>(io) != (uint32_t) n_router()) {
        throw std::runtime_error("not the scores of this model's routers");
    }
    const uint32_t n_seq = read_value<uint32_t>(io);
    if (n_seq > (dst < 0 ? lctx.n_seq_max() : 1)) {
        throw std::runtime_error("more sequences than the context has");
    }
    std::map<llama_seq_id, first_sequence> loaded;
    for (uint32_t i = 0; i < n_seq; i++) {
        const int32_t seq_id = read_value<int32_t>(io);
        if (dst < 0 && (seq_id < 0 || (uint32_t) seq_id >= lctx.n_seq_max())) {
            throw std::runtime_error("a sequence that the context does not have");
        }
        loaded[dst < 0 ? seq_id : dst] = read_sequence(io); // the state of one sequence may go into another one
    }
    for (auto & [seq_id, seq] : loaded) {
        sequences[seq_id] = std::move(seq);
    }
}

void first_context::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    if (!is_whole(flags)) {
        return;
    }
    if (seq_id < 0) {
        clear();
    } else {
        seq_rm(seq_id, 0, -1);
    }
    if (!routers->valid) {
        return;
    }
    const size_t start = io.n_bytes();
    try {
        read_sequences(io, seq_id);
    } catch (const std::exception & e) {
        // the cache itself is loaded; without scores it is read at full depth
        if (io.n_bytes() > start) {
            LLAMA_LOG_WARN("first: scores in the saved state are not used: %s\n", e.what());
        }
    }
}
