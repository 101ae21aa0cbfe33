#include "first-route.h"

#include <algorithm>
#include <cmath>

//
// first_sequence
//

void first_sequence::put(int32_t pos, first_row row, const float * row_scores, int32_t n_router) {
    if (pos < 0) {
        return;
    }
    if ((size_t) pos >= rows.size()) {
        rows.resize(pos + 1, FIRST_ROW_UNKNOWN);
        scores.resize(rows.size()*n_router, 0.0f);
    }
    rows[pos] = row;
    if (row_scores) {
        std::copy(row_scores, row_scores + n_router, scores.begin() + (size_t) pos*n_router);
    }
}

void first_sequence::cut(int32_t p0, int32_t p1, int32_t n_router) {
    const int32_t n_pos = (int32_t) rows.size();
    p0 = std::max(p0, 0);
    p1 = p1 < 0 ? n_pos : std::min(p1, n_pos);
    if (p0 >= p1) {
        return;
    }
    if (p1 == n_pos) {
        decided = false;
        rows.resize(p0);
        scores.resize((size_t) p0*n_router);
        return;
    }
    // a hole in the middle: nothing is cached there, so nothing of it counts; an answer behind it keeps its mask
    std::fill(rows.begin() + p0, rows.begin() + p1, FIRST_ROW_DECODE);
}

void first_sequence::shift(int32_t p0, int32_t p1, int32_t delta, int32_t n_router) {
    const int32_t n_pos = (int32_t) rows.size();
    p0 = std::max(p0, 0);
    p1 = p1 < 0 ? n_pos : std::min(p1, n_pos);
    if (p0 >= p1 || delta == 0) {
        return;
    }
    const std::vector<first_row> old_rows   = rows;
    const std::vector<float>     old_scores = scores;
    std::fill(rows.begin() + p0, rows.begin() + p1, FIRST_ROW_DECODE);
    for (int32_t pos = p0; pos < p1; pos++) {
        put(pos + delta, old_rows[pos], old_scores.data() + (size_t) pos*n_router, n_router);
    }
    if (p1 == n_pos && delta < 0) {
        rows.resize(std::max(n_pos + delta, 0)); // what they moved over was removed before
        scores.resize(rows.size()*n_router);
    }
}

void first_sequence::forget_rows() {
    std::fill(rows.begin(), rows.end(), FIRST_ROW_UNKNOWN);
    decided = false;
}

int32_t first_sequence::n_prompt() const {
    return (int32_t) std::count(rows.begin(), rows.end(), FIRST_ROW_PROMPT);
}

bool first_sequence::has_unknown() const {
    return std::find(rows.begin(), rows.end(), FIRST_ROW_UNKNOWN) != rows.end();
}

std::vector<float> first_sequence::means(int32_t n_router) const {
    std::vector<double> sums(n_router, 0.0);
    int32_t n = 0;
    for (size_t pos = 0; pos < rows.size(); pos++) {
        if (rows[pos] != FIRST_ROW_PROMPT) {
            continue;
        }
        for (int32_t i = 0; i < n_router; i++) {
            sums[i] += scores[pos*n_router + i];
        }
        n++;
    }
    std::vector<float> result(n_router, NAN);
    for (int32_t i = 0; i < n_router && n > 0; i++) {
        result[i] = (float) (sums[i]/n);
    }
    return result;
}

//
// masks
//

bool first_mask_keeps_every_kind(const first_layer_table & table, const first_mask & mask) {
    for (int32_t il = 0; il < table.n_layer(); il++) {
        bool kept = false;
        for (int32_t jl = 0; jl < table.n_layer(); jl++) {
            kept = kept || (table.kinds[jl] == table.kinds[il] && !mask[jl]);
        }
        if (!kept) {
            return false;
        }
    }
    return true;
}

// skippable layers with a score, lowest score first; ties go to the earlier layer
static std::vector<int32_t> layers_by_score(const first_layer_table & table, const std::vector<float> & scores) {
    std::vector<int32_t> order;
    for (int32_t il = 0; il < table.n_layer(); il++) {
        if (table.skippable[il] && !std::isnan(scores[il])) {
            order.push_back(il);
        }
    }
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return scores[a] < scores[b]; });
    return order;
}

static void skip_if_allowed(const first_layer_table & table, first_mask & mask, int32_t il) {
    mask[il] = 1;
    if (!first_mask_keeps_every_kind(table, mask)) {
        mask[il] = 0;
    }
}

first_mask first_mask_by_threshold(const first_layer_table & table, const std::vector<float> & scores, float threshold) {
    first_mask mask(table.n_layer(), 0);
    for (int32_t il : layers_by_score(table, scores)) {
        if (scores[il] < threshold) {
            skip_if_allowed(table, mask, il);
        }
    }
    return mask;
}

first_mask first_mask_by_budget(const first_layer_table & table, const std::vector<float> & scores, float fraction) {
    first_mask mask(table.n_layer(), 0);
    // 0.1f * 30 is a little more or less than 3: a caller who says 0.1 means 3 of 30
    const int32_t n_skip = (int32_t) std::floor((double) fraction*table.n_layer() + 1e-4);
    int32_t n = 0;
    for (int32_t il : layers_by_score(table, scores)) {
        if (n == n_skip) {
            break;
        }
        skip_if_allowed(table, mask, il);
        n += mask[il];
    }
    return mask;
}
