#pragma once

#include <array>
#include <cstddef>
#include <limits>

// What a ubatch of answers costs besides its rows, learned from those that ran. Where weights are read faster than they are
// computed with (a small CPU), little; where reading them is most of the work (many cores, slow memory), much.
class first_pace {
public:
    // n_rows rows ran that many layers, in seconds
    void ran(size_t n_rows, float n_layers, float seconds);

    // The part that does not grow with the rows, in rows. Infinite, as if rows were free, until two numbers of rows were seen.
    float fixed_rows() const;

private:
    static const size_t max_rows = 8; // of larger batches, kernels use other code

    // seconds a layer, by the number of rows; 0 if there was none
    std::array<float, max_rows + 1> least = {};
};
