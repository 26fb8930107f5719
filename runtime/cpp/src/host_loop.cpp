// The sampling loop over engines that run one graph at a time. It has no mathematics: bind row i of the tables, run the
// engine, swap two buffers (runtime/loop/host_loop.py).
#include <algorithm>
#include <map>

#include "engine.hpp"
#include "tables.hpp"

namespace ditedge {
namespace {

constexpr std::int64_t kModulationBytes = 64 << 20;    // adaLN rows held at a time; a row of DiT-XL is 0.8 MB

class HostLoop final : public Loop {
public:
    HostLoop(std::shared_ptr<const Bundle> bundle, const EngineOptions& options)
        : Loop(std::move(bundle)) {
        for (const auto& graph : bundle_->manifest.graphs)
            bundle_->with_graph(graph.first, [&](const GraphBytes& bytes) {
                engines_[graph.first] = open_ort_engine(bytes, graph.second, options, graph.first != "decoder");
            });
    }

    void sample(const Run& run, float* latents) override {
        const StepTables& tables = run.tables;
        const ModelInfo& model = bundle_->manifest.model;
        const std::int64_t c = model.in_channels, h = model.input_size, count = tables.batch;
        const std::size_t numbers = static_cast<std::size_t>(count) * bundle_->latent_count();
        std::vector<float> drawn(numbers), silent(numbers, 0.0f);
        std::vector<float> state(numbers * static_cast<std::size_t>(tables.slots)), next_state(state.size());
        first_state(run, bundle_->latent_count(), state.data());

        const std::int64_t width = bundle_->manifest.modulation_width, rows = tables.conditions.rows;
        const std::int64_t block = std::clamp<std::int64_t>(kModulationBytes / (4 * width * rows), 1, tables.steps);
        std::vector<float> modulation(static_cast<std::size_t>(block * rows * width));
        for (std::int64_t step = 0; step < tables.steps; ++step) {
            check_cancelled(run, step);
            if (step % block == 0) condition(tables, step, std::min(block, tables.steps - step), modulation.data());
            const bool draws = tables.draws[static_cast<std::size_t>(step)];
            if (draws) run.noise(step + 1, drawn.data());
            std::vector<Tensor> inputs = tables.inputs(step);
            inputs.push_back(view("state", state.data(), {count, tables.slots, c, h, h}));
            inputs.push_back(view("modulation", modulation.data() + step % block * rows * width, {rows, width}));
            inputs.push_back(view("noise", (draws ? drawn : silent).data(), {count, c, h, h}));
            engines_.at("step")->run(inputs, view("next_state", next_state.data(), {count, tables.slots, c, h, h}));
            state.swap(next_state);
            if (run.on_step) run.on_step(step + 1, state.data());
        }
        latents_of_state(run, bundle_->latent_count(), state.data(), latents);
    }

protected:
    void interrupt(bool stop) override {
        for (const auto& engine : engines_) engine.second->interrupt(stop);
    }

    void decode_some(const float* latents, std::int64_t count, std::uint8_t* images) override {
        const ModelInfo& model = bundle_->manifest.model;
        const ImageSize& size = bundle_->manifest.image;
        engines_.at("decoder")->run({view("latent", latents, {count, model.in_channels, model.input_size, model.input_size})},
                                    view("image", images, {count, size.height, size.width, size.channels}));
    }

private:
    // The adaLN rows [steps, R, M] of a block of steps.
    void condition(const StepTables& tables, std::int64_t first, std::int64_t steps, float* modulation) {
        const Conditions some = tables.conditions.of_steps(first, steps);
        engines_.at("conditioner")->run(some.inputs(), view("modulation", modulation, {some.steps * some.rows, bundle_->manifest.modulation_width}));
    }

    std::map<std::string, std::unique_ptr<Engine>> engines_;
};

}  // namespace

std::unique_ptr<Loop> open_host_loop(std::shared_ptr<const Bundle> bundle, const EngineOptions& options) {
    return std::make_unique<HostLoop>(std::move(bundle), options);
}

}  // namespace ditedge
