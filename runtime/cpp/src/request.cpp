#include "request.hpp"

#include <algorithm>
#include <cmath>
#include <set>

#include "capi.hpp"

namespace ditedge {
namespace {

void check_label(const Bundle& bundle, std::int64_t label) {
    const ModelInfo& model = bundle.manifest.model;
    if ((label < 0 || label >= model.num_classes) && label != model.null_class)
        fail_request("class " + std::to_string(label) + ": the model has classes 0 to " + std::to_string(model.num_classes - 1));
}

// A side of a picture in pixels; 0: the model's own.
std::int64_t side_of(const TextInfo& text, std::int64_t pixels, std::int64_t own, const char* name) {
    if (pixels == 0) return own;
    const std::int64_t unit = text.factor * text.multiple, most = text.factor * text.largest;
    if (pixels >= unit && pixels <= most && pixels % unit == 0) return pixels / text.factor;
    const double units = std::nearbyint(static_cast<double>(pixels) / static_cast<double>(unit));  // a half to the even one, as Python's round
    const double near = std::clamp(units * static_cast<double>(unit), static_cast<double>(unit), static_cast<double>(most));
    fail_request(std::string(name) + " " + std::to_string(pixels) + " is not a multiple of " + std::to_string(unit) + " from " +
                 std::to_string(unit) + " to " + std::to_string(most) + " pixels: the nearest is " + std::to_string(std::llround(near)));
}

PromptPointer opened_for(const Bundle& bundle, const ditedge_prompt& prompt) {
    require(prompt.bundle.get() == &bundle, "a prompt was opened for another bundle than the session's");
    return prompt.prompt;
}

void check_told(double guidance) {
    if (!(std::abs(guidance) <= kMaxGuidance)) fail_request("guidance " + shown(guidance) + " is not a number up to 3e38");
}

Subject class_subject(const Bundle& bundle, const Wanted& wanted, double guidance) {
    if (wanted.prompt != nullptr || wanted.negative != nullptr) text_of(bundle);  // throws
    check_label(bundle, wanted.label);
    if (wanted.away_from != -1) check_label(bundle, wanted.away_from);
    Subject subject{wanted.label, wanted.away_from, nullptr, nullptr, {}, false};
    if (!bundle.manifest.tells_guidance()) return subject;
    if (wanted.away_from != -1)
        fail_request(bundle.folder->path.string() + " reads its guidance as a number and evaluates each step once: leave the class to guide away from out");
    check_told(guidance);
    subject.told = {{"guidance", static_cast<float>(guidance)}};
    return subject;
}

// Whether steps have a second evaluation, which leads away from another prompt. negative: one was given.
bool is_guided(const Bundle& bundle, double guidance, bool negative) {
    const std::string& kind = text_of(bundle).guidance;
    const std::string place = bundle.folder->path.string();
    if (negative && kind != "true")
        fail_request(place + (kind == "embedded" ? " reads its guidance as a number" : " has no guidance") +
                     " and evaluates each step once: leave negative prompts out");
    if (kind == "none" && guidance != 1.0) fail_request("guidance " + shown(guidance) + ": " + place + " has none: leave it out, or give 1");
    if (kind == "embedded") check_told(guidance);
    return kind == "true" && guidance != 1.0;
}

Subject prompt_subject(const Bundle& bundle, const Wanted& wanted, double guidance, const Size& latent, PromptPointer& nothing) {
    const TextInfo& text = text_of(bundle);
    if (wanted.prompt == nullptr) fail_request(bundle.folder->path.string() + " takes prompts: give one for each image");
    Subject subject;
    const bool guided = is_guided(bundle, guidance, wanted.negative != nullptr);
    subject.prompt = opened_for(bundle, *wanted.prompt);
    if (guided) {
        if (wanted.negative == nullptr && !nothing) nothing = no_words(bundle);
        subject.negative = wanted.negative != nullptr ? guided_away(bundle, opened_for(bundle, *wanted.negative)) : nothing;
    }
    subject.told = {{"height", static_cast<float>(latent.height * text.factor)}, {"width", static_cast<float>(latent.width * text.factor)}};
    if (text.guidance == "embedded") subject.told.emplace_back("guidance", static_cast<float>(guidance));
    subject.vectors = bundle.manifest.output("context", "vector") != nullptr;
    return subject;
}

// nothing: the prompt of no words, read when it is wanted first.
Subject subject_of(const Bundle& bundle, const Wanted& wanted, double guidance, const Size& latent, PromptPointer& nothing) {
    return bundle.manifest.text ? prompt_subject(bundle, wanted, guidance, latent, nothing) : class_subject(bundle, wanted, guidance);
}

}  // namespace

Size latent_of(const Bundle& bundle, std::int64_t width, std::int64_t height) {
    const Size own = bundle.manifest.latent();
    if (width == 0 && height == 0) return own;
    const TextInfo& text = text_of(bundle);
    const std::int64_t w = side_of(text, width, own.width, "width");
    return {side_of(text, height, own.height, "height"), w};
}

double guidance_of(const Bundle& bundle, double given) { return std::isnan(given) ? bundle.manifest.default_guidance : given; }

double strength_of(const Bundle& bundle, double guidance) {
    const auto& text = bundle.manifest.text;
    return (text ? text->guidance == "embedded" : bundle.manifest.tells_guidance()) ? 1.0 : guidance;
}

Subject subject_of(const Bundle& bundle, const Wanted& wanted, double guidance, const Size& latent) {
    PromptPointer nothing;
    return subject_of(bundle, wanted, guidance, latent, nothing);
}

std::vector<Subject> subjects_of(const Bundle& bundle, const ditedge_params& params, const Size& latent) {
    const bool prompts = bundle.manifest.text.has_value();
    if (prompts && (params.labels != nullptr || params.away_from != nullptr))
        fail_request(bundle.folder->path.string() + " takes prompts, and no classes: give prompts");
    if (!prompts && (params.prompts != nullptr || params.negatives != nullptr)) text_of(bundle);  // throws
    require(prompts || params.labels != nullptr, "labels are missing");
    std::vector<Subject> subjects;
    PromptPointer nothing;
    for (std::int64_t i = 0; i < params.count; ++i) {
        Wanted wanted;
        if (params.labels != nullptr) wanted.label = params.labels[i];
        if (params.away_from != nullptr) wanted.away_from = params.away_from[i];
        if (params.prompts != nullptr) wanted.prompt = params.prompts[i];
        if (params.negatives != nullptr) wanted.negative = params.negatives[i];
        subjects.push_back(subject_of(bundle, wanted, guidance_of(bundle, params.guidance), latent, nothing));
    }
    return subjects;
}

void check_request(const Bundle& bundle, const ditedge_params& params, bool images) {
    require(params.count >= 1 && params.count <= kMaxImages, "count is not between 1 and 1048576");
    require(params.batch >= 1 && params.batch <= kMaxBatch, "batch is not between 1 and 4096");
    require(params.step_noise == nullptr || params.initial_noise != nullptr, "step_noise is given, and initial_noise is not");
    require(params.seeds != nullptr || params.initial_noise != nullptr, "seeds are missing");
    require(params.on_preview == nullptr || params.preview_every >= 1, "preview_every is not at least 1");
    const bool previews = bundle.manifest.graphs.count("preview") != 0;
    if (images || (params.on_preview != nullptr && !previews)) bundle.require_graph("decoder");  // fails now, not later
}

Program chosen_program(const Bundle& bundle, const char* name, const char* file, const Size& latent, bool other_process) {
    require(name == nullptr || file == nullptr, "give a program's name or its file, not both");
    Program program = file != nullptr ? read_program(file) : bundle.program(name, latent);
    if (program.process && !other_process) check_process(program.name, *program.process, bundle.manifest.process);
    for (const std::string& graph : program.graph) bundle.require_graph(graph);
    return program;
}

void check_bytes(std::size_t bytes, std::uint64_t each, std::int64_t count, const char* complaint) {
    require(bytes == each * static_cast<std::uint64_t>(count), complaint);
}

void check_room(double bytes) {
    if (bytes > static_cast<double>(PTRDIFF_MAX)) throw std::bad_alloc();
}

void check_noise(std::size_t latent, const Program& program, const ditedge_params& params) {
    bool draws = false;
    for (std::int64_t step = 0; step < program.steps; ++step) draws = draws || program.draws_noise(step);
    if (draws && params.initial_noise != nullptr && params.step_noise == nullptr)
        throw Error(DITEDGE_ERROR_ARGUMENT, "step_noise is missing: program '" + program.name + "' adds noise");
    const std::uint64_t wanted = sizeof(float) * latent * static_cast<std::uint64_t>(params.count * program.steps);
    if (params.initial_noise != nullptr) check_room(sizeof(float) * static_cast<double>(latent) * static_cast<double>(params.count));
    if (params.step_noise != nullptr && params.step_noise_bytes != wanted)
        throw Error(DITEDGE_ERROR_ARGUMENT, "step_noise_bytes is " + std::to_string(params.step_noise_bytes) + ", and " +
                                                std::to_string(program.steps) + " steps of count latents are " + std::to_string(wanted));
}

void check_memory(const Bundle& bundle, const Size& size, const Program& program, const ditedge_params& params) {
    const ModelInfo& model = bundle.manifest.model;
    const double batch = static_cast<double>(std::min(params.batch, params.count)), slots = static_cast<double>(program.slots) + 1;
    const double states = batch * slots * static_cast<double>(bundle.latent_count(size));
    const std::set<double> factors(program.guidance.begin(), program.guidance.end());
    const double tables = batch * static_cast<double>(program.steps) * slots * (slots + 2) +
                          2 * batch * batch * static_cast<double>(model.out_channels) * static_cast<double>(factors.size());
    const double rows = (1 + batch) * 2 * static_cast<double>(bundle.manifest.modulation_width);
    const double pictures = batch * static_cast<double>(std::max(bundle.manifest.picture_size("decoder", size).bytes(), bundle.manifest.picture_size("preview", size).bytes()));
    const double context = bundle.manifest.text ? 2 * batch * static_cast<double>(bundle.manifest.text->most_tokens() * bundle.manifest.graphs.at("context").outputs[0].shape.back()) : 0;
    check_room(sizeof(float) * std::max({states, tables, rows, pictures, context}));
}

void check_memory(const std::vector<ImageRun*>& images) {
    double states = 0, rows = 0;
    for (const ImageRun* image : images) {
        const auto width = static_cast<double>(image->bundle->manifest.modulation_width);
        states += static_cast<double>(image->state.size());
        rows += std::max(static_cast<double>(image->tables.conditions.rows) * width, kRunModulationBytes / 4.0);
    }
    const double count = static_cast<double>(images.size());
    const double combine = images.empty() ? 0 : 2 * count * count * static_cast<double>(images[0]->tables.out_channels);
    check_room(sizeof(float) * std::max({states, rows, combine}));
}

}  // namespace ditedge
