// The sampling loop over engines that run one graph at a time. It has no mathematics: bind row i of the tables, run the
// engine, swap two buffers (runtime/sampler.py's Sampler).
#include <algorithm>
#include <map>

#include "engine.hpp"
#include "error.hpp"
#include "tables.hpp"

namespace ditedge {
namespace {

constexpr std::int64_t kDecodePixels = 512 * 512;      // decoded at a time: Stable Diffusion's decoder takes 5 kB a pixel
constexpr std::int64_t kModulationBytes = 64 << 20;    // adaLN rows held at a time; a row of DiT-XL is 0.8 MB

class HostLoop final : public Loop {
public:
    HostLoop(std::shared_ptr<const Bundle> bundle, const EngineOptions& options)
        : bundle_(std::move(bundle)), options_(options) {
        for (const auto& [name, info] : bundle_->manifest.graphs)
            engines_[name] = open_ort_engine(bundle_->graph_file(name), info, options_, name != "decoder");
    }

    void sample(const Run& run, float* latents) override {
        const StepTables& tables = run.tables;
        const ModelInfo& model = bundle_->manifest.model;
        const std::int64_t c = model.in_channels, h = model.input_size, count = tables.batch;
        const auto batch = static_cast<std::size_t>(count), slots = static_cast<std::size_t>(tables.slots);
        const std::size_t latent = bundle_->latent_count();
        std::vector<float> state(batch * slots * latent, 0.0f), next_state(state.size());
        std::vector<float> drawn(batch * latent), silent(drawn.size(), 0.0f);
        run.noise.initial(drawn.data());
        const float scale = static_cast<float>(run.program.init_scale);
        for (std::size_t b = 0; b < batch; ++b)
            for (std::size_t i = 0; i < latent; ++i) state[b * slots * latent + i] = drawn[b * latent + i] * scale;

        const std::int64_t width = bundle_->manifest.modulation_width, rows = static_cast<std::int64_t>(tables.labels.size());
        const std::int64_t block = std::clamp<std::int64_t>(kModulationBytes / (4 * width * rows), 1, tables.steps);
        std::vector<float> modulation(static_cast<std::size_t>(block * rows * width));
        for (std::int64_t step = 0; step < tables.steps; ++step) {
            if (run.cancel.load(std::memory_order_relaxed))
                throw Error(DITEDGE_CANCELLED, "stopped before step " + std::to_string(step + 1) + " of " +
                                                   std::to_string(tables.steps));
            if (step % block == 0) condition(tables, step, std::min(block, tables.steps - step), modulation.data());
            const bool draws = run.program.draws_noise(step);
            if (draws) run.noise.step(step, drawn.data());
            std::vector<Tensor> inputs = tables.inputs(step);
            inputs.push_back(view("state", state.data(), {count, tables.slots, c, h, h}));
            inputs.push_back(view("modulation", modulation.data() + step % block * rows * width, {rows, width}));
            inputs.push_back(view("noise", (draws ? drawn : silent).data(), {count, c, h, h}));
            engines_.at("step")->run(inputs, view("next_state", next_state.data(), {count, tables.slots, c, h, h}));
            state.swap(next_state);
            if (run.on_step) run.on_step(step + 1, state.data());
        }
        for (std::size_t b = 0; b < batch; ++b)
            std::copy_n(state.begin() + static_cast<std::ptrdiff_t>(b * slots * latent), latent, latents + b * latent);
    }

    void decode(const float* latents, std::int64_t count, std::uint8_t* images) override {
        bundle_->graph_file("decoder");  // throws where there is none
        const ModelInfo& model = bundle_->manifest.model;
        const ImageSize& size = bundle_->manifest.image;
        const std::int64_t at_once = std::max<std::int64_t>(1, kDecodePixels / (size.height * size.width));
        for (std::int64_t first = 0; first < count; first += at_once) {
            const std::int64_t n = std::min(at_once, count - first);
            const auto index = static_cast<std::size_t>(first);
            engines_.at("decoder")->run({view("latent", latents + index * bundle_->latent_count(),
                                              {n, model.in_channels, model.input_size, model.input_size})},
                                        view("image", images + index * size.bytes(),
                                             {n, size.height, size.width, size.channels}));
        }
    }

private:
    // The adaLN rows [steps, R, M] of a block of steps.
    void condition(const StepTables& tables, std::int64_t first, std::int64_t steps, float* modulation) {
        std::vector<float> timestep;
        std::vector<std::int64_t> label;
        for (std::int64_t step = first; step < first + steps; ++step)
            for (const std::int64_t row : tables.labels) {
                timestep.push_back(tables.timestep[static_cast<std::size_t>(step)]);
                label.push_back(row);
            }
        const auto rows = static_cast<std::int64_t>(label.size());
        engines_.at("conditioner")->run({view("timestep", timestep.data(), {rows}), view("label", label.data(), {rows})},
                                        view("modulation", modulation, {rows, bundle_->manifest.modulation_width}));
    }

    std::shared_ptr<const Bundle> bundle_;
    EngineOptions options_;
    std::map<std::string, std::unique_ptr<Engine>> engines_;
};

}  // namespace

std::unique_ptr<Loop> open_host_loop(std::shared_ptr<const Bundle> bundle, const EngineOptions& options) {
    return std::make_unique<HostLoop>(std::move(bundle), options);
}

std::unique_ptr<Loop> open_loop(std::shared_ptr<const Bundle> bundle, const EngineOptions& options) {
    if (options.engine == "onnxruntime") return open_host_loop(std::move(bundle), options);
    fail_engine("engine '" + options.engine + "' is not in this build of libditedge, which has: onnxruntime");
}

}  // namespace ditedge
