#include "first-pace.h"

#include <algorithm>

// How fast a time forgets that it was once faster. Slow ubatches (a new graph, another program) hardly count.
static const float forget = 1.01f;

void first_pace::ran(size_t n_rows, float n_layers, float seconds) {
    if (n_rows == 0 || n_rows > max_rows || !(n_layers > 0.0f) || !(seconds > 0.0f)) {
        return;
    }
    float & known = least[n_rows];
    const float now = seconds/n_layers;
    known = known > 0.0f ? std::min(now, known*forget) : now;
}

// A straight line through the times, by least squares: where it crosses zero is how many rows the rest is worth.
float first_pace::fixed_rows() const {
    const float unknown = std::numeric_limits<float>::infinity();
    int   n = 0;
    float mean_rows = 0.0f;
    float mean_time = 0.0f;
    for (size_t r = 1; r <= max_rows; r++) {
        if (least[r] > 0.0f) {
            n++;
            mean_rows += r;
            mean_time += least[r];
        }
    }
    if (n < 2) {
        return unknown;
    }
    mean_rows /= n;
    mean_time /= n;
    float covariance = 0.0f;
    float variance   = 0.0f;
    for (size_t r = 1; r <= max_rows; r++) {
        if (least[r] > 0.0f) {
            covariance += (r - mean_rows)*(least[r] - mean_time);
            variance   += (r - mean_rows)*(r - mean_rows);
        }
    }
    if (covariance <= 0.0f) {
        return unknown;
    }
    return std::max(0.0f, mean_time*variance/covariance - mean_rows);
}
