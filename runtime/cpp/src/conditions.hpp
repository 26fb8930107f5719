// What the network is told beside the latent, as records of named values (runtime/loop/conditions.py). Every step of a run has
// R of them. Tables and loops count them as rows, and the conditioner reads them by its inputs' names.
#pragma once

#include <cstdint>
#include <utility>
#include <variant>
#include <vector>

#include "engine.hpp"

namespace ditedge {

struct Condition {
    const char* name;  // of an input of the conditioner
    std::variant<std::vector<float>, std::vector<std::int64_t>> values;  // [N, R]
};

struct Conditions {
    std::int64_t steps = 0, rows = 0;  // N, R
    std::vector<Condition> values;

    // Of steps first .. first + count - 1. Steps after the last are copies of it.
    Conditions of_steps(std::int64_t first, std::int64_t count) const;
    // What the conditioner binds for all steps: views of [N R] numbers each.
    std::vector<Tensor> inputs() const;
};

// One record a label at every step: timestep [N, R] and label [N, R].
Conditions class_conditions(const std::vector<double>& timesteps, const std::vector<std::int64_t>& labels);

// timestep, height and width [N, 1]: one record a step, whatever the prompts, which reach the network by another way. A model that
// is not told its picture's size (in pixels) has no such inputs.
Conditions prompt_conditions(const std::vector<double>& timesteps, const Size& picture);

// All of their rows one after another, as those of one step.
Conditions joined(const std::vector<Conditions>& parts);

// The records of several images, each once and sorted, and for each image which of them its own are.
std::pair<Conditions, std::vector<std::vector<std::int64_t>>> shared_conditions(const std::vector<const Conditions*>& images);

}  // namespace ditedge
