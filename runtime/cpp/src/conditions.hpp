// What the network is told beside the latent, as records of named values (runtime/loop/conditions.py). Every step of a run has
// R of them. Tables and loops count them as rows, and the conditioner reads them by its inputs' names.
#pragma once

#include <cstdint>
#include <string_view>
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

using Scalars = std::vector<std::pair<const char*, float>>;
using Columns = std::vector<std::pair<const char*, std::vector<double>>>;  // [N] each: what changes from step to step

// One record a label at every step: timestep, which is the first of the columns, the others and label, [N, R] each.
Conditions class_conditions(const Columns& columns, const std::vector<std::int64_t>& labels);

constexpr const char* kPromptRow = "prompt";  // the condition that is a row of `vector`, of a run's prompts

// timestep and each of the scalars [N, R]; a model has no inputs of those that it is not told. prompts: how many an image has,
// where the conditioner reads their vectors: R of them, and kPromptRow [N, R] is their places among its own. 0: one record a step,
// whatever the prompts, which reach the network by another way.
Conditions prompt_conditions(const std::vector<double>& timesteps, const Scalars& scalars, std::int64_t prompts);

// Prompts by their places among a run's, instead of among an image's own: rows of the latter.
Conditions with_rows(const Conditions& conditions, const std::vector<std::int64_t>& rows);

// The rows of vectors [P, Q] that the conditions' prompts are, [N R, Q], appended. Nothing where they have none.
void append_vectors(const Conditions& conditions, const float* vectors, std::int64_t width, std::vector<float>& rows);

// What the conditioner reads: views of the conditions, and of vectors [N R, Q] of their prompts where there are some.
std::vector<Tensor> conditioner_inputs(const Conditions& conditions, const std::vector<float>& vectors);

// All of their rows one after another, as those of one step.
Conditions joined(const std::vector<Conditions>& parts);

// The records of several images, each once and sorted, and for each image which of them its own are.
std::pair<Conditions, std::vector<std::vector<std::int64_t>>> shared_conditions(const std::vector<const Conditions*>& images);

}  // namespace ditedge
