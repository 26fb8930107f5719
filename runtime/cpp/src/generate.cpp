#include "generate.hpp"

#include <algorithm>
#include <cmath>

#include "noise.hpp"
#include "request.hpp"
#include "tables.hpp"

namespace ditedge {
namespace {

// Images with an infinite number or NaN (runtime/loop/finite.py).
class Overflows {
public:
    // step: after which it was so; 0: nobody looked.
    void add(const Bundle& bundle, const ditedge_params& params, std::int64_t image, std::int64_t step) {
        if (++count_ > kNamed) return;
        std::string said = params.labels != nullptr ? class_words(bundle, params.labels[image]) : "";
        if (params.initial_noise == nullptr) said += ", seed " + std::to_string(params.seeds[image]);
        if (step > 0) said += ", from step " + std::to_string(step) + " on";
        if (said.rfind(", ", 0) == 0) said = said.substr(2);
        text_ += (count_ > 1 ? ", " : "") + ("image " + std::to_string(image)) + (said.empty() ? "" : " (" + said + ")");
    }
    // Throws Error (not finite) if there are any.
    void check(const Bundle& bundle, const ditedge_params& params) const {
        if (count_ == 0) return;
        bool precise = true;
        for (const auto& graph : bundle.manifest.graphs) precise = precise && graph.second.float32;
        throw Error(DITEDGE_ERROR_NOT_FINITE,
                    std::to_string(count_) + " of " + std::to_string(params.count) + " pictures overflowed: " + text_ +
                        (count_ > kNamed ? ", and " + std::to_string(count_ - kNamed) + " more" : "") +
                        (precise ? "; try less guidance, or verify the bundle" : "; use the float32 bundle, or bf16") +
                        (params.check_finite == 0 ? "; check_finite says at which step it begins" : ""));
    }

private:
    static std::string class_words(const Bundle& bundle, std::int64_t label) {
        const auto& names = bundle.manifest.labels;
        const bool named = static_cast<std::uint64_t>(label) < names.size();
        return "class " + std::to_string(label) +
               (label == bundle.manifest.model.null_class ? " no class" : named ? " " + names[static_cast<std::size_t>(label)] : "");
    }

    static constexpr std::int64_t kNamed = 4;  // images that a sentence names
    std::int64_t count_ = 0;
    std::string text_;
};

// latents, `stride` numbers apart, by the graph `preview` (else the decoder) -> pictures; no number has no colour
void preview(ditedge_session& session, const ditedge_params& params, const float* latents, std::size_t stride,
             const Size& of_latent, std::int64_t step, std::int64_t first, std::int64_t batch) {
    const char* graph = session.bundle->manifest.graphs.count("preview") != 0 ? "preview" : "decoder";
    const ImageSize size = session.bundle->manifest.picture_size(graph, of_latent);
    const std::size_t latent = session.bundle->latent_count(of_latent), count = static_cast<std::size_t>(batch);
    std::vector<float> packed(count * latent);
    for (std::size_t b = 0; b < count; ++b)
        std::transform(latents + b * stride, latents + b * stride + latent, packed.begin() + static_cast<std::ptrdiff_t>(b * latent),
                       [](float number) { return std::isfinite(number) ? number : 0.0f; });
    std::vector<std::uint8_t> pictures(count * size.bytes());
    session.loop->decode(graph, packed.data(), batch, of_latent, pictures.data());
    const ditedge_preview event = {sizeof event, step, first, batch, size.height, size.width, size.channels, pictures.data()};
    params.on_preview(&event, params.user);
}

}  // namespace

bool finite(const float* numbers, std::size_t count) {
    return std::all_of(numbers, numbers + count, [](float number) { return std::isfinite(number); });
}

void blacken_not_finite(const Bundle& bundle, const float* latents, std::int64_t count, const Size& of_latent, std::uint8_t* images) {
    const std::size_t latent = bundle.latent_count(of_latent), size = bundle.manifest.picture_size("decoder", of_latent).bytes();
    std::size_t bad = 0, first = 0;
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
        if (finite(latents + i * latent, latent)) continue;
        if (bad++ == 0) first = i;
        std::fill_n(images + i * size, size, std::uint8_t{0});
    }
    if (bad != 0)
        throw Error(DITEDGE_ERROR_NOT_FINITE, std::to_string(bad) + " of " + std::to_string(count) +
                                                  " latents have infinite numbers or NaN: the first is that of image " + std::to_string(first));
}

void generate(ditedge_session& session, const ditedge_params& params, const Size& size_of_latent, const Write& write) {
    const Bundle& bundle = *session.bundle;
    const std::size_t latent = bundle.latent_count(size_of_latent);
    const std::vector<Subject> subjects = subjects_of(bundle, params, size_of_latent);
    Program program = chosen_program(bundle, params.program, params.program_file, size_of_latent, params.other_process != 0);
    const std::int64_t slots = program.slots;
    check_noise(latent, program, params);
    check_memory(bundle, size_of_latent, program, params);
    const Call call(session, params.request);
    if (params.on_preview != nullptr) program = with_x0_slot(program);
    const double guidance = strength_of(bundle, guidance_of(bundle, params.guidance));
    const std::int64_t batches = (params.count + params.batch - 1) / params.batch;
    std::vector<float> latents, shown;
    Overflows overflows;
    for (std::int64_t first = 0; first < params.count; first += params.batch) {
        const std::int64_t batch = std::min(params.batch, params.count - first);
        const auto size = static_cast<std::size_t>(batch);
        const auto of_batch = subjects.begin() + static_cast<std::ptrdiff_t>(first);
        const auto tables = step_tables(program, bundle.manifest.model, {of_batch, of_batch + static_cast<std::ptrdiff_t>(batch)}, guidance);
        const auto noise = [&](std::int64_t draw, float* numbers) {
            const auto skipped = static_cast<std::size_t>(first);
            if (params.initial_noise == nullptr) {
                for (std::size_t b = 0; b < size; ++b)
                    standard_normal(params.seeds[skipped + b], static_cast<std::uint64_t>(draw), numbers + b * latent, latent);
            } else {
                const auto steps = static_cast<std::size_t>(std::max<std::int64_t>(0, draw - 1) * params.count);
                const float* drawn = draw == 0 ? params.initial_noise : params.step_noise + steps * latent;
                std::copy_n(drawn + skipped * latent, size * latent, numbers);
            }
        };
        std::vector<std::int64_t> began(size);  // the step at which an image stopped to be finite; 0: none yet
        const auto previews = [&](std::int64_t step) { return params.on_preview != nullptr && step % params.preview_every == 0; };
        const auto on_step = [&](std::int64_t step, const float* state) {
            const std::size_t stride = static_cast<std::size_t>(program.slots) * latent;
            for (std::size_t b = 0; params.check_finite != 0 && state != nullptr && b < size; ++b)
                if (began[b] == 0 && !finite(state + b * stride, stride)) began[b] = step;
            if (params.on_progress != nullptr) {
                if (state != nullptr) {
                    shown.resize(size * latent);
                    for (std::size_t b = 0; b < size; ++b)
                        std::copy_n(state + b * stride, latent, shown.begin() + static_cast<std::ptrdiff_t>(b * latent));
                }
                const ditedge_progress event = {sizeof event, first / params.batch * program.steps + step,
                                                batches * program.steps, first, batch,
                                                state != nullptr ? shown.data() : nullptr};
                params.on_progress(&event, params.user);
            }
            if (previews(step) && state != nullptr)
                preview(session, params, state + static_cast<std::size_t>(slots) * latent, stride, size_of_latent, step, first, batch);
        };
        latents.resize(size * latent);
        const bool watched = params.on_progress != nullptr || params.on_preview != nullptr || params.check_finite != 0;
        const auto wants_state = [&](std::int64_t step) { return params.check_finite != 0 || previews(step); };
        const Run run{program, tables, size_of_latent, noise, session.loop->cancelled,
                               watched ? std::function<void(std::int64_t, const float*)>(on_step) : nullptr, wants_state};
        session.loop->sample(run, latents.data());
        std::vector<bool> good(size);
        for (std::size_t b = 0; b < size; ++b) {
            good[b] = finite(latents.data() + b * latent, latent);
            if (good[b]) continue;
            overflows.add(bundle, params, first + static_cast<std::int64_t>(b), began[b]);
            std::fill_n(latents.data() + b * latent, latent, 0.0f);
        }
        write(static_cast<std::size_t>(first), good, latents.data());
    }
    overflows.check(bundle, params);
}

}  // namespace ditedge
