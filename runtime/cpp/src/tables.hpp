// Every input of the step graph but state, noise and modulation, for all N steps of a batch of B at once, so that a
// device can upload them once and address them by offset (runtime/loop/session.py's step_tables).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "bundle.hpp"
#include "engine.hpp"

namespace ditedge {

// Unguided steps run E = B evaluations, guided ones E = 2B (all conditional, then all unconditional).
struct StepTables {
    std::int64_t steps, batch, slots, out_channels;
    std::vector<bool> guided, draws;                  // [N]; draws: adds noise
    std::vector<std::int64_t> labels;                 // [R] distinct labels, the rows that `condition` counts
    std::vector<float> timestep;                      // [N]
    std::vector<std::int64_t> sample, condition;      // [2B]; the first B are the unguided step's
    std::vector<float> combine_guided, combine_plain; // [B, 2B, O], [B, B, O]
    std::vector<float> x0_from, x0_bound, log_sigma;  // [N, B, 2], [B], [N, B, 2]
    std::vector<float> mix;                           // [N, B, K, K + 2]

    // What step `step` binds: views of the tables, which must stay alive and unchanged meanwhile.
    std::vector<Tensor> inputs(std::int64_t step) const;
    // What the conditioner reads for the adaLN rows of some steps: [steps, R] each. Steps after the last are copies of it.
    std::pair<std::vector<float>, std::vector<std::int64_t>> conditions(std::int64_t first, std::int64_t count) const;
};

// guidance 1 is none. away_from: per sample a class to guide away from, -1 for "no class"; or empty.
// Throws Error (request) when guidance has nothing to guide away from.
StepTables step_tables(const Program& program, const ModelInfo& model, const std::vector<std::int64_t>& labels,
                       double guidance, const std::vector<std::int64_t>& away_from);

}  // namespace ditedge
