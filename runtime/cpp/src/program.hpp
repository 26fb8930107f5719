// A sampler as a table (docs/format.md): N steps, K state slots, float64.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "process.hpp"

namespace ditedge {

constexpr std::size_t kMaxProgramBytes = 16 << 20;

struct Program {
    std::string name;
    std::int64_t steps = 0, slots = 0;
    std::vector<double> timestep;   // [N]
    std::vector<double> interval;   // [N] how far a step goes, in timesteps; empty: the network is not told
    std::vector<double> x0_from;    // [N, 2]
    std::vector<double> log_sigma;  // [N, 2]
    std::vector<double> mix;        // [N, K, K + 2]
    std::vector<double> guidance;   // [N] how much of the guidance asked for: 1 all, 0 none
    double x0_bound = 0;
    std::array<double, 2> init{};    // slot 0 starts as init[0] given latent + init[1] unit noise
    std::vector<std::string> graph;  // [N] which step graph a step runs; empty: all run "step"
    std::optional<Process> process;  // what it was made for; none: not known

    std::string graph_of(std::int64_t step) const { return graph.empty() ? "step" : graph[static_cast<std::size_t>(step)]; }
    bool draws_noise(std::int64_t step) const;  // its mix has a non-zero noise column
};

// Whether a bundle's graph of this name is a step graph: "step", or "step-" and a name of its own.
bool is_step_graph(const std::string& name);

// Both throw Error (program) naming `place` or the file, and the field.
Program program_from_json(const std::string& text, const std::string& place);
Program read_program(const std::filesystem::path& path);

// The same sampler with one more slot, the last, in which every step leaves its x0 estimate.
Program with_x0_slot(const Program& program);

}  // namespace ditedge
