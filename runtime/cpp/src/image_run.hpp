// Images that are sampled step by step, each at its own pace (runtime/loop/image_run.py): Loop::advance takes one step of all
// given ones in a batch. They may differ in program, step, guidance, class or prompts, size and seed, because tables belong to one image.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "bundle.hpp"
#include "tables.hpp"

namespace ditedge {

constexpr std::int64_t kRunModulationBytes = 8 << 20;  // adaLN rows that an image holds: those of its next steps

struct ImageRun {
    // given: the latent [C, H, W] to start from, where the program does; or null. Throws Error (request).
    ImageRun(std::shared_ptr<const Bundle> opened, Program chosen, ImageTables made, const Size& of_latent, std::uint64_t drawn_by, const float* given);

    bool done() const { return step == program.steps; }
    bool has_modulation() const { return step - modulation_from < modulation_steps; }
    // The adaLN rows [R, M] of the next step.
    const float* modulation_rows() const;

    const std::shared_ptr<const Bundle> bundle;
    const Program program;
    const ImageTables tables;
    const Size latent;  // H, W
    const std::uint64_t seed;
    std::int64_t step = 0;     // steps done
    std::vector<float> state;  // [K, C, H, W]
    std::vector<float> modulation;                           // [modulation_steps, R, M]
    std::int64_t modulation_from = 0, modulation_steps = 0;  // of which steps
};

}  // namespace ditedge
