// The sampling loop over engines that run one graph at a time. It has no mathematics: bind row i of the tables, run the
// engine, swap two buffers (runtime/loop/host_loop.py).
#include <algorithm>
#include <map>
#include <tuple>

#include "engine.hpp"
#include "error.hpp"
#include "image_run.hpp"
#include "noise.hpp"
#include "tables.hpp"
#include "text_graphs.hpp"

namespace ditedge {
namespace {

constexpr std::int64_t kHeldBytes = 64 << 20;  // adaLN rows held at a time; a row of DiT-XL is 0.8 MB

class HostLoop final : public Loop {
public:
    HostLoop(std::shared_ptr<const Bundle> bundle, const EngineOptions& options)
        : Loop(std::move(bundle)), options_(options), encoders_(*bundle_, options, cancelled), text_(*bundle_, [this](const std::string& graph) -> Engine& { return engine(graph); }) {
        for (const auto& graph : bundle_->manifest.graphs)
            if (!TextEncoders::has(graph.first)) engines_[graph.first] = opened(graph.first);
    }

    void sample(const Run& run, float* latents) override {
        const StepTables& tables = run.tables;
        const std::int64_t c = bundle_->manifest.model.in_channels, h = run.latent.height, w = run.latent.width, count = tables.batch;
        const std::size_t latent = bundle_->latent_count(run.latent), numbers = static_cast<std::size_t>(count) * latent;
        std::vector<float> drawn(numbers), silent(numbers, 0.0f);
        std::vector<float> state(numbers * static_cast<std::size_t>(tables.slots)), next_state(state.size());
        first_state(run.program, run.noise, nullptr, count, latent, state.data());
        const OfPrompts told = text_.of(tables.prompts, run.latent);

        const std::int64_t width = bundle_->manifest.modulation_width, rows = tables.conditions.rows;
        const std::int64_t block = std::clamp<std::int64_t>(kHeldBytes / (4 * width * rows), 1, tables.steps);
        std::vector<float> modulation(static_cast<std::size_t>(block * rows * width));
        for (std::int64_t step = 0; step < tables.steps; ++step) {
            check_cancelled(run, step);
            if (step % block == 0) condition(tables, told, step, std::min(block, tables.steps - step), modulation.data());
            const bool draws = tables.draws[static_cast<std::size_t>(step)];
            if (draws) run.noise(step + 1, drawn.data());
            std::vector<Tensor> inputs = tables.inputs(step);
            inputs.push_back(view("state", state.data(), {count, tables.slots, c, h, w}));
            inputs.push_back(view("modulation", modulation.data() + step % block * rows * width, {rows, width}));
            inputs.push_back(view("noise", (draws ? drawn : silent).data(), {count, c, h, w}));
            inputs.insert(inputs.end(), told.tensors.begin(), told.tensors.end());
            engine(run.program.graph_of(step)).run(inputs, {view("next_state", next_state.data(), {count, tables.slots, c, h, w})});
            state.swap(next_state);
            if (run.on_step) run.on_step(step + 1, state.data());
        }
        latents_of_state(run, latent, state.data(), latents);
    }

    void advance(const std::vector<ImageRun*>& runs) override {
        std::vector<ImageRun*> moving, bare;
        for (ImageRun* run : runs) {
            if (run->done()) continue;
            moving.push_back(run);
            if (!run->has_modulation()) bare.push_back(run);
        }
        if (cancelled.load()) fail_cancelled("before the next step of " + std::to_string(moving.size()) + " images");
        if (!bare.empty()) modulate(bare);
        // Images of one size with as many slots share a call: empty slots would change the last bit of a sum (runtime/loop/image_run.py).
        std::map<std::tuple<std::string, std::int64_t, Size>, std::vector<ImageRun*>> together;
        for (ImageRun* run : moving) together[{run->program.graph_of(run->step), run->program.slots, run->latent}].push_back(run);
        for (const auto& [shared, some] : together) step(engine(std::get<0>(shared)), some);
    }

protected:
    void interrupt(bool stop) override {
        for (const auto& loaded : engines_) loaded.second->interrupt(stop);
        encoders_.interrupt(stop);
    }

    void decode_some(const std::string& graph, const float* latents, std::int64_t count, const Size& latent, std::uint8_t* images) override {
        const ImageSize size = bundle_->manifest.picture_size(graph, latent);
        engine(graph).run({view("latent", latents, {count, bundle_->manifest.model.in_channels, latent.height, latent.width})},
                          {view("image", images, {count, size.height, size.width, size.channels})});
    }

private:
    std::unique_ptr<Engine> opened(const std::string& graph) const {
        std::unique_ptr<Engine> engine;
        bundle_->with_graph(graph, [&](const GraphBytes& bytes) {
            engine = open_ort_engine(bytes, bundle_->manifest.graphs.at(graph), options_, graph != "decoder");
        });
        return engine;
    }

    Engine& engine(const std::string& graph) { return TextEncoders::has(graph) ? encoders_.engine(graph) : *engines_.at(graph); }

    // The adaLN rows [steps, R, M] of a block of steps.
    void condition(const StepTables& tables, const OfPrompts& told, std::int64_t first, std::int64_t steps, float* modulation) {
        const Conditions some = tables.conditions.of_steps(first, steps);
        std::vector<float> vectors;
        told.add_vectors(some, vectors);
        run_conditioner(some, vectors, modulation);
    }

    void run_conditioner(const Conditions& conditions, const std::vector<float>& vectors, float* modulation) {
        const std::int64_t rows = conditions.steps * conditions.rows;
        const Tensor made = view("modulation", modulation, {rows, bundle_->manifest.modulation_width});
        engine("conditioner").run(conditioner_inputs(conditions, vectors), {made});
    }

    // The adaLN rows of the next steps of each, in one call of the conditioner.
    void modulate(const std::vector<ImageRun*>& runs) {
        const std::int64_t width = bundle_->manifest.modulation_width;
        std::vector<Conditions> parts;
        std::vector<float> vectors;
        for (const ImageRun* run : runs) {
            const std::int64_t fit = kRunModulationBytes / (4 * width * run->tables.conditions.rows);
            const std::int64_t steps = std::clamp<std::int64_t>(fit, 1, run->program.steps - run->step);
            parts.push_back(run->tables.conditions.of_steps(run->step, steps));
            if (bundle_->manifest.output("context", "vector") != nullptr) text_.of(run->tables.prompts, run->latent).add_vectors(parts.back(), vectors);
        }
        const Conditions all = joined(parts);
        std::vector<float> rows(static_cast<std::size_t>(all.rows * width));
        run_conditioner(all, vectors, rows.data());
        auto from = rows.begin();
        for (std::size_t i = 0; i < runs.size(); ++i) {
            const auto size = static_cast<std::ptrdiff_t>(parts[i].steps * parts[i].rows * width);
            runs[i]->modulation.assign(from, from + size);
            runs[i]->modulation_from = runs[i]->step, runs[i]->modulation_steps = parts[i].steps;
            from += size;
        }
    }

    // One step of images of one size with as many slots.
    void step(Engine& of_step, const std::vector<ImageRun*>& runs) {
        std::vector<ImageTables> own;
        std::vector<const ImageTables*> pointers;
        for (const ImageRun* run : runs) own.push_back(run->tables.at(run->step));
        for (const ImageTables& tables : own) pointers.push_back(&tables);
        const StepTables tables = gather(pointers);
        const std::int64_t batch = tables.batch, rows = tables.conditions.rows, width = bundle_->manifest.modulation_width;
        const Size& size = runs[0]->latent;
        const std::int64_t c = bundle_->manifest.model.in_channels, h = size.height, w = size.width;
        const OfPrompts told = text_.of(tables.prompts, size);
        const std::size_t latent = bundle_->latent_count(size), state_size = static_cast<std::size_t>(tables.slots) * latent;
        std::vector<float> state, next_state(runs.size() * state_size), noise(runs.size() * latent, 0.0f);
        std::vector<float> modulation(static_cast<std::size_t>(rows * width));
        for (std::size_t b = 0; b < runs.size(); ++b) {
            const ImageRun& run = *runs[b];
            state.insert(state.end(), run.state.begin(), run.state.end());
            const float* from = run.modulation_rows();
            for (const std::int64_t row : tables.rows_of[b]) {
                std::copy_n(from, width, modulation.data() + row * width);
                from += width;
            }
            if (run.program.draws_noise(run.step))
                standard_normal(run.seed, static_cast<std::uint64_t>(run.step) + 1, noise.data() + b * latent, latent);
        }
        std::vector<Tensor> inputs = tables.inputs(0);
        inputs.push_back(view("state", state.data(), {batch, tables.slots, c, h, w}));
        inputs.push_back(view("modulation", modulation.data(), {rows, width}));
        inputs.push_back(view("noise", noise.data(), {batch, c, h, w}));
        inputs.insert(inputs.end(), told.tensors.begin(), told.tensors.end());
        of_step.run(inputs, {view("next_state", next_state.data(), {batch, tables.slots, c, h, w})});
        for (std::size_t b = 0; b < runs.size(); ++b) {
            const auto from = next_state.begin() + static_cast<std::ptrdiff_t>(b * state_size);
            runs[b]->state.assign(from, from + static_cast<std::ptrdiff_t>(state_size));
            ++runs[b]->step;
        }
    }

    const EngineOptions options_;
    std::map<std::string, std::unique_ptr<Engine>> engines_;
    TextEncoders encoders_;
    TextGraphs text_;
};

}  // namespace

std::unique_ptr<Loop> open_host_loop(std::shared_ptr<const Bundle> bundle, const EngineOptions& options) {
    return std::make_unique<HostLoop>(std::move(bundle), options);
}

}  // namespace ditedge
