// What the sampling loops share, and which one an engine has.
#include <algorithm>

#include "engine.hpp"
#include "error.hpp"
#include "tables.hpp"

namespace ditedge {
namespace {

constexpr std::int64_t kDecodePixels = 512 * 512;  // decoded at a time: Stable Diffusion's decoder takes 5 kB a pixel

}  // namespace

Loop::Loop(std::shared_ptr<const Bundle> bundle) : bundle_(std::move(bundle)) {
    for (const char* graph : {"decoder", "preview"}) {
        const ImageSize size = bundle_->manifest.picture_size(graph, bundle_->manifest.latent());
        if (size.bytes() != 0) at_once_[graph] = std::max<std::int64_t>(1, kDecodePixels / (size.height * size.width));
    }
}

void Loop::decode(const std::string& graph, const float* latents, std::int64_t count, const Size& latent, std::uint8_t* images) {
    bundle_->require_graph(graph);  // throws where there is none
    const ImageSize size = bundle_->manifest.picture_size(graph, latent);
    const std::int64_t most = std::min(at_once_.at(graph), std::max<std::int64_t>(1, kDecodePixels / (size.height * size.width)));
    for (std::int64_t first = 0; first < count; first += most) {
        if (cancelled.load()) fail_cancelled("before decoding image " + std::to_string(first + 1) + " of " + std::to_string(count));
        const auto index = static_cast<std::size_t>(first);
        decode_some(graph, latents + index * bundle_->latent_count(latent), std::min(most, count - first), latent, images + index * size.bytes());
    }
}

void Loop::advance(const std::vector<ImageRun*>&) {
    fail_request("plans run whole programs: sample step by step on ONNX Runtime");
}

void first_state(const Program& program, const Noise& noise, const float* given, std::int64_t batch, std::size_t latent, float* state) {
    if (given == nullptr && program.init[0] != 0)
        fail_request("program '" + program.name + "' starts from a given latent: its init[0] is not 0");
    const auto count = static_cast<std::size_t>(batch), slots = static_cast<std::size_t>(program.slots);
    std::vector<float> drawn(count * latent);
    noise(0, drawn.data());
    const float of_given = static_cast<float>(program.init[0]), of_noise = static_cast<float>(program.init[1]);
    std::fill_n(state, count * slots * latent, 0.0f);
    for (std::size_t b = 0; b < count; ++b)
        for (std::size_t i = 0; i < latent; ++i) {
            float& first = state[b * slots * latent + i];
            first = drawn[b * latent + i] * of_noise;
            if (given != nullptr) first += of_given * given[b * latent + i];
        }
}

void latents_of_state(const Run& run, std::size_t latent, const float* state, float* latents) {
    const auto slots = static_cast<std::size_t>(run.tables.slots);
    for (std::size_t b = 0; b < static_cast<std::size_t>(run.tables.batch); ++b)
        std::copy_n(state + b * slots * latent, latent, latents + b * latent);
}

void check_cancelled(const Run& run, std::int64_t step) {
    if (run.cancel.load(std::memory_order_relaxed))
        fail_cancelled("before step " + std::to_string(step + 1) + " of " + std::to_string(run.tables.steps));
}

std::unique_ptr<Loop> open_loop(std::shared_ptr<const Bundle> bundle, const EngineOptions& options) {
    std::string engines = "onnxruntime (for plans, compile it with -DTENSORRT_ROOT)";
    if (options.engine == "onnxruntime" && options.provider == "cuda") return open_device_loop(std::move(bundle), options);
    if (options.engine == "onnxruntime") return open_host_loop(std::move(bundle), options);
#ifdef DITEDGE_TENSORRT
    engines = "onnxruntime, tensorrt, tensorrt-rtx";
    if (options.engine == "tensorrt" || options.engine == "tensorrt-rtx") return open_device_loop(std::move(bundle), options);
#endif
    fail_engine("engine '" + options.engine + "' is not in this build of libditedge, which has: " + engines);
}

}  // namespace ditedge
