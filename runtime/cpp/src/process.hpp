// What a program was made for, and what a model was trained on (runtime/samplers/process.py): run on another process, a program
// paints noise and says nothing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace ditedge {

class Field;  // json.hpp, whose parser would be half of what the other files compile

constexpr std::size_t kMaxSteps = 100'000;  // of a program and of a schedule (docs/format.md, "Limits")

// The manifest's `schedule`.
struct ScheduleInfo {
    std::string kind;  // "linear", "scaled_linear", "cosine" or "given"
    std::int64_t steps = 0;
    std::vector<double> betas;  // linear kinds: the first and the last; given: [steps]; cosine: none
    bool zero_terminal_snr = false;
};

struct Process {
    std::string prediction;
    std::array<double, 2> timestep_range{999, 0};  // of noise, of data
    std::optional<ScheduleInfo> schedule;          // none: a flow
};

// Each throws Error with the field's status. A schedule of null is none.
std::optional<ScheduleInfo> read_schedule(const Field& field);
std::array<double, 2> read_timestep_range(const Field& field);
Process read_process(const Field& field);

// Throws Error (request) with both values where program `name` was made for another process than the model's.
// Betas that are listed on one side and named on the other are compared by their number only.
void check_process(const std::string& name, const Process& made_for, const Process& model);

}  // namespace ditedge
