// Tables: what the step graph reads beside state, noise and modulation (runtime/loop/tables.py). They belong to one image; a
// batch gathers a row of each image's. Where its images go through one program in step that is all rows at once, so that a
// device can upload them once and address them by offset.
#pragma once

#include <cstdint>
#include <vector>

#include "bundle.hpp"
#include "conditions.hpp"
#include "engine.hpp"
#include "prompts.hpp"

namespace ditedge {

// What an image is of, and is guided away from: a class each, or a prompt each.
struct Subject {
    std::int64_t label = 0, away_from = -1;  // -1: "no class"
    PromptPointer prompt, negative;          // null: the model takes classes; no negative: nothing guides
    Scalars told;                            // to the conditioner beside timestep and label or prompts
    bool vectors = false;                    // the conditioner reads the prompts' vectors
};

constexpr double kMaxGuidance = 3.0e38;  // MAX_NUMBER of runtime/fields.py

// The N steps of one image, each with one evaluation of the network or two: the second one guides. An evaluation's row among
// a step's conditions is 0 for the first, R - 1 for the second.
struct ImageTables {
    std::int64_t steps = 0, slots = 0, out_channels = 0;
    Conditions conditions;                            // R is 1 where no step is guided, else 2
    std::vector<bool> guided, draws;                  // [N]; draws: adds noise
    std::vector<float> weights;                       // [N, 2, O], of the two evaluations
    std::vector<float> x0_from, x0_bound, log_sigma;  // [N, 2], [N], [N, 2]
    std::vector<float> mix;                           // [N, K, K + 2]
    std::vector<PromptPointer> prompts;               // of the first evaluation and, last, of the second; none: the model takes none

    ImageTables at(std::int64_t step) const;  // that step alone
};

// Which evaluations a step makes and how they are weighed: first one of each image, then those that guide.
struct Evaluations {
    std::vector<std::int64_t> sample, condition;  // [E]; rows of the step's conditions
    std::vector<std::int64_t> prompt;             // [E]: rows of the batch's prompts; none: the model takes none
    std::vector<float> combine;                   // [B, E, O]
};

// The N steps of a batch of B images that are gathered.
struct StepTables {
    std::int64_t steps = 0, batch = 0, slots = 0, out_channels = 0;
    Conditions conditions;                            // every record once
    std::vector<std::vector<std::int64_t>> rows_of;   // by image: which of a step's R records its own are
    std::vector<bool> draws;                          // [N]: some image adds noise
    std::vector<Evaluations> evaluations;             // those that differ
    std::vector<std::size_t> evaluations_of;          // [N] which of them a step makes
    std::vector<float> x0_from, x0_bound, log_sigma;  // [N, B, 2], [N, B], [N, B, 2]
    std::vector<float> mix;                           // [N, B, K, K + 2]
    std::vector<PromptPointer> prompts;               // each once

    // What step `step` binds: views of the tables, which must stay alive and unchanged meanwhile.
    std::vector<Tensor> inputs(std::int64_t step) const;  // both of:
    std::vector<Tensor> evaluation_inputs(std::int64_t step) const;  // which evaluations it makes
    std::vector<Tensor> row_inputs(std::int64_t step) const;         // its row of the program
    std::int64_t evaluation_count(std::int64_t step) const;  // E
};

// guidance 1 is none. Throws Error (request) when guidance has nothing to guide away from.
ImageTables image_tables(const Program& program, const ModelInfo& model, const Subject& subject, double guidance);

// Images of as many steps and slots each: row n of one beside row n of the others.
StepTables gather(const std::vector<const ImageTables*>& images);

// Of a batch of images of one program.
StepTables step_tables(const Program& program, const ModelInfo& model, const std::vector<Subject>& subjects, double guidance);

}  // namespace ditedge
