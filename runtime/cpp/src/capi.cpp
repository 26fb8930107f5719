// The C interface: bundles, sessions, images. capi_runs.cpp has prompts and images that are sampled step by step.
#include "capi.hpp"

#include <limits>

#include "generate.hpp"
#include "noise.hpp"
#include "request.hpp"

using ditedge::Bundle;
using ditedge::Call;
using ditedge::check_bytes;
using ditedge::clear;
using ditedge::guarded;
using ditedge::narrowed;
using ditedge::require;
using ditedge::Size;
using ditedge::widened;

namespace {

// Fixed memory: saying that memory ran out must not need any.
thread_local char last_error[1024];

ditedge_session_options default_options() {
    ditedge_session_options options{};
    options.size = sizeof options;
    return options;
}

ditedge_params default_params() {
    ditedge_params params{};
    params.size = sizeof params;
    params.guidance = std::numeric_limits<double>::quiet_NaN();
    params.batch = 8;
    params.preview_every = 1;
    return params;
}

}  // namespace

namespace ditedge {

ditedge_status failed(ditedge_status status, const char* message) noexcept {
    std::strncpy(last_error, message, sizeof last_error - 1);
    return status;
}

void forget_failure() noexcept { last_error[0] = '\0'; }

}  // namespace ditedge

extern "C" {

#define DITEDGE_TEXT_(number) #number
#define DITEDGE_TEXT(number) DITEDGE_TEXT_(number)
const char* ditedge_version(void) {
    return DITEDGE_TEXT(DITEDGE_VERSION_MAJOR) "." DITEDGE_TEXT(DITEDGE_VERSION_MINOR) "." DITEDGE_TEXT(DITEDGE_VERSION_PATCH);
}

int ditedge_version_number(void) { return DITEDGE_VERSION_NUMBER; }

const char* ditedge_last_error(void) { return last_error; }

const char* ditedge_status_name(ditedge_status status) {
    static const char* const names[] = {"ok", "argument error", "bundle error", "program error", "request error",
                                        "engine error", "no CUDA device", "cancelled", "out of memory", "internal error", "not finite"};
    const auto index = static_cast<unsigned>(status);
    return index < sizeof names / sizeof *names ? names[index] : "unknown status";
}

ditedge_status ditedge_bundle_open(const char* path, int check_hashes, ditedge_bundle** bundle) {
    return guarded([&] {
        clear<ditedge_bundle*>(bundle, nullptr);
        require(path != nullptr && bundle != nullptr, "path and bundle must not be null");
        *bundle = new ditedge_bundle{std::make_shared<const Bundle>(
            ditedge::open_bundle(path, check_hashes != 0, ditedge::trusted_keys_of_environment()))};
    });
}

ditedge_status ditedge_bundle_open_trusted(const char* path, const char* const* keys, size_t count, ditedge_bundle** bundle) {
    return guarded([&] {
        clear<ditedge_bundle*>(bundle, nullptr);
        require(path != nullptr && bundle != nullptr, "path and bundle must not be null");
        require(keys != nullptr && count > 0, "keys are missing: without trusted keys nothing can be opened by them");
        require(std::all_of(keys, keys + count, [](const char* key) { return key != nullptr; }), "a key's path is null");
        ditedge::TrustedKeys trusted = ditedge::read_trusted_keys({keys, keys + count});
        *bundle = new ditedge_bundle{std::make_shared<const Bundle>(ditedge::open_bundle(path, true, std::move(trusted)))};
    });
}

void ditedge_bundle_close(ditedge_bundle* bundle) { delete bundle; }

ditedge_status ditedge_bundle_info(const ditedge_bundle* bundle, ditedge_info* info) {
    return guarded([&] {
        require(info != nullptr, "info must not be null");
        narrowed(ditedge_info{}, info, info->size, "info");
        require(bundle != nullptr, "bundle must not be null");
        const ditedge::Manifest& m = bundle->bundle->manifest;
        ditedge_info full = {sizeof full, m.model.num_classes, m.model.null_class.value_or(-1), m.model.in_channels,
                             m.model.input_size, m.model.input_size, m.image.height, m.image.width,
                             m.image.channels, m.default_guidance, 0, 0, 0, 0, 0};
        if (m.text) {
            full.text_encoders = static_cast<std::int64_t>(m.text->encoders.size());
            full.prompt_tokens = m.text->most_tokens(), full.size_factor = m.text->factor;
            full.size_multiple = m.text->multiple * m.text->factor, full.size_largest = m.text->largest * m.text->factor;
        }
        narrowed(full, info, info->size, "info");
    });
}

static const char* name_at(const std::vector<std::string>& names, std::int64_t index) {
    const bool there = index >= 0 && static_cast<std::uint64_t>(index) < names.size();
    return there ? names[static_cast<std::size_t>(index)].c_str() : nullptr;
}

const char* ditedge_class_name(const ditedge_bundle* bundle, int64_t index) {
    return bundle == nullptr ? nullptr : name_at(bundle->bundle->manifest.labels, index);
}

int64_t ditedge_program_count(const ditedge_bundle* bundle) {
    return bundle == nullptr ? 0 : static_cast<int64_t>(bundle->bundle->manifest.program_names.size());
}

const char* ditedge_program_name(const ditedge_bundle* bundle, int64_t index) {
    return bundle == nullptr ? nullptr : name_at(bundle->bundle->manifest.program_names, index);
}

const char* ditedge_default_program(const ditedge_bundle* bundle) {
    return bundle == nullptr ? nullptr : bundle->bundle->manifest.default_program.c_str();
}

int64_t ditedge_graph_count(const ditedge_bundle* bundle) {
    return bundle == nullptr ? 0 : static_cast<int64_t>(bundle->bundle->manifest.graph_names.size());
}

const char* ditedge_graph_name(const ditedge_bundle* bundle, int64_t index) {
    return bundle == nullptr ? nullptr : name_at(bundle->bundle->manifest.graph_names, index);
}

ditedge_status ditedge_program_steps(const ditedge_bundle* bundle, const char* name, int64_t* steps) {
    return guarded([&] {
        clear<int64_t>(steps, 0);
        require(bundle != nullptr && steps != nullptr, "bundle and steps must not be null");
        *steps = bundle->bundle->program(name).steps;
    });
}

ditedge_status ditedge_program_file_steps(const char* file, int64_t* steps) {
    return guarded([&] {
        clear<int64_t>(steps, 0);
        require(file != nullptr && steps != nullptr, "file and steps must not be null");
        *steps = ditedge::read_program(file).steps;
    });
}

ditedge_status ditedge_find_class(const ditedge_bundle* bundle, const char* text, int64_t* label) {
    return guarded([&] {
        clear<int64_t>(label, -1);
        require(bundle != nullptr && text != nullptr && label != nullptr, "bundle, text and label must not be null");
        *label = bundle->bundle->label(text);
    });
}

ditedge_status ditedge_session_options_init(ditedge_session_options* options, size_t size) {
    return guarded([&] { narrowed(default_options(), options, size, "options"); });
}

ditedge_status ditedge_params_init(ditedge_params* params, size_t size) {
    return guarded([&] { narrowed(default_params(), params, size, "params"); });
}

ditedge_status ditedge_session_open(const ditedge_bundle* bundle, const ditedge_session_options* options,
                                    ditedge_session** session) {
    return guarded([&] {
        clear<ditedge_session*>(session, nullptr);
        require(bundle != nullptr && session != nullptr, "bundle and session must not be null");
        const ditedge_session_options given = widened(options, default_options(), "options");
        require(given.threads >= 0 && given.device >= 0, "threads and device must not be negative");
        const ditedge::EngineOptions chosen{given.engine != nullptr ? given.engine : "onnxruntime",
                                            given.provider != nullptr ? given.provider : "cpu",
                                            given.library != nullptr ? given.library : "", given.threads, given.device,
                                            given.spin != 0, given.tf32 != 0, given.no_cuda_graph == 0};
        auto opened = std::make_unique<ditedge_session>();
        opened->bundle = bundle->bundle;
        opened->loop = ditedge::open_loop(bundle->bundle, chosen);
        *session = opened.release();
    });
}

void ditedge_session_close(ditedge_session* session) {
    // After fork() the engine's threads are the parent's: joining them here would wait for ever.
    if (session != nullptr && session->process != getpid()) static_cast<void>(session->loop.release());
    delete session;
}

const char* ditedge_session_warning(const ditedge_session* session, int64_t index) {
    if (session == nullptr || index < 0) return nullptr;
    const auto& warnings = session->loop->warnings();
    return static_cast<std::uint64_t>(index) < warnings.size() ? warnings[static_cast<std::size_t>(index)].c_str() : nullptr;
}

ditedge_status ditedge_generate_images(ditedge_session* session, const ditedge_params* params, uint8_t* images,
                                       size_t bytes) {
    return guarded([&] {
        require(session != nullptr && params != nullptr && images != nullptr, "session, params and images must not be null");
        const ditedge_params given = widened(params, default_params(), "params");
        const Bundle& bundle = *session->bundle;
        check_request(bundle, given, true);
        const Size latent = latent_of(bundle, given.width, given.height);
        const std::size_t size = bundle.manifest.picture_size("decoder", latent).bytes();
        check_bytes(bytes, size, given.count, "bytes is not the size of count images");
        generate(*session, given, latent, [&](std::size_t first, const std::vector<bool>& good, const float* latents) {
            session->loop->decode("decoder", latents, static_cast<std::int64_t>(good.size()), latent, images + first * size);
            for (std::size_t b = 0; b < good.size(); ++b)
                if (!good[b]) std::fill_n(images + (first + b) * size, size, std::uint8_t{0});
        });
    });
}

ditedge_status ditedge_generate_latents(ditedge_session* session, const ditedge_params* params, float* latents,
                                        size_t bytes) {
    return guarded([&] {
        require(session != nullptr && params != nullptr && latents != nullptr, "session, params and latents must not be null");
        const ditedge_params given = widened(params, default_params(), "params");
        const Bundle& bundle = *session->bundle;
        check_request(bundle, given, false);
        const Size latent = latent_of(bundle, given.width, given.height);
        const std::size_t count = bundle.latent_count(latent);
        check_bytes(bytes, sizeof(float) * count, given.count, "bytes is not the size of count latents");
        generate(*session, given, latent, [&](std::size_t first, const std::vector<bool>& good, const float* from) {
            std::copy_n(from, good.size() * count, latents + first * count);
        });
    });
}

ditedge_status ditedge_decode(ditedge_session* session, const float* latents, int64_t count, uint8_t* images, size_t bytes) {
    return ditedge_decode_size(session, latents, count, 0, 0, images, bytes);
}

ditedge_status ditedge_decode_size(ditedge_session* session, const float* latents, int64_t count, int64_t width, int64_t height,
                                   uint8_t* images, size_t bytes) {
    return guarded([&] {
        require(session != nullptr && latents != nullptr && images != nullptr, "session, latents and images must not be null");
        require(count >= 1 && count <= ditedge::kMaxImages, "count is not between 1 and 1048576");
        const Bundle& bundle = *session->bundle;
        bundle.require_graph("decoder");
        const Size latent = latent_of(bundle, width, height);
        check_bytes(bytes, bundle.manifest.picture_size("decoder", latent).bytes(), count, "bytes is not the size of count images");
        const Call call(*session, 0);
        session->loop->decode("decoder", latents, count, latent, images);
        blacken_not_finite(bundle, latents, count, latent, images);
    });
}

void ditedge_cancel(ditedge_session* session) {
    if (session != nullptr) session->loop->cancel();
}

void ditedge_cancel_request(ditedge_session* session, uint64_t request) {
    if (session == nullptr) return;
    const std::lock_guard<std::mutex> lock(session->mutex);
    session->cancelled_requests = std::max(session->cancelled_requests, request);
    if (session->request != 0 && session->request <= request) session->loop->cancel();
}

ditedge_status ditedge_noise(uint64_t seed, uint64_t draw, float* numbers, size_t count) {
    return guarded([&] {
        require(numbers != nullptr || count == 0, "numbers must not be null");
        ditedge::standard_normal(seed, draw, numbers, count);
    });
}

}  // extern "C"
