// The C interface: checks arguments, turns exceptions into status codes, cuts a request into batches.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

#include "bundle.hpp"
#include "ditedge.h"
#include "engine.hpp"
#include "error.hpp"
#include "noise.hpp"
#include "tables.hpp"

using ditedge::Bundle;
using ditedge::Error;

struct ditedge_bundle {
    std::shared_ptr<const Bundle> bundle;
};

struct ditedge_sampler {
    std::shared_ptr<const Bundle> bundle;
    std::unique_ptr<ditedge::Loop> loop;
    std::atomic<bool> cancel{false};
};

namespace {

constexpr std::int64_t kMaxImages = 1 << 20, kMaxBatch = 4096;

// Fixed memory: saying that memory ran out must not need any.
thread_local char last_error[1024];

ditedge_status failed(ditedge_status status, const char* message) noexcept {
    std::strncpy(last_error, message, sizeof last_error - 1);
    return status;
}

template <class Body>
ditedge_status guarded(const Body& body) noexcept {
    last_error[0] = '\0';
    try {
        body();
        return DITEDGE_OK;
    } catch (const Error& error) {
        return failed(error.status(), error.what());
    } catch (const std::bad_alloc&) {
        return failed(DITEDGE_ERROR_MEMORY, "out of memory");
    } catch (const std::length_error&) {
        return failed(DITEDGE_ERROR_MEMORY, "out of memory: a buffer of impossible size was asked for");
    } catch (const std::exception& error) {
        return failed(DITEDGE_ERROR_INTERNAL, error.what());
    } catch (...) {
        return failed(DITEDGE_ERROR_INTERNAL, "unknown exception");
    }
}

void require(bool condition, const char* complaint) {
    if (!condition) throw Error(DITEDGE_ERROR_ARGUMENT, complaint);
}

// The caller's struct, which may be older (smaller) than ours: fields that it lacks keep their defaults.
template <class T>
T widened(const T* given, T defaults, const char* name) {
    if (given == nullptr) return defaults;
    if (given->size < sizeof(std::size_t) || given->size > sizeof(T))
        throw Error(DITEDGE_ERROR_ARGUMENT, std::string(name) + " was made for another version of this library: call its _init function");
    std::memcpy(&defaults, given, given->size);
    return defaults;
}

// Our struct, cut to the size of the caller's.
template <class T>
void narrowed(const T& value, T* given, std::size_t size, const char* name) {
    if (given == nullptr || size < sizeof(std::size_t) || size > sizeof(T))
        throw Error(DITEDGE_ERROR_ARGUMENT, std::string(name) + " is null or larger than this version of the library knows");
    std::memcpy(given, &value, size);
    given->size = size;
}

ditedge_sampler_options default_options() { return {sizeof(ditedge_sampler_options), nullptr, nullptr, nullptr, 0, 0}; }

ditedge_params default_params() {
    ditedge_params params{};
    params.size = sizeof params;
    params.guidance = std::numeric_limits<double>::quiet_NaN();
    params.batch = 8;
    params.preview_every = 1;
    return params;
}

void check_label(const Bundle& bundle, std::int64_t label) {
    const ditedge::ModelInfo& model = bundle.manifest.model;
    if ((label < 0 || label >= model.num_classes) && label != model.null_class)
        ditedge::fail_request("class " + std::to_string(label) + ": the model has classes 0 to " +
                              std::to_string(model.num_classes - 1));
}

void check_request(const Bundle& bundle, const ditedge_params& params, bool images) {
    require(params.count >= 1 && params.count <= kMaxImages, "count is not between 1 and 1048576");
    require(params.batch >= 1 && params.batch <= kMaxBatch, "batch is not between 1 and 4096");
    require(params.labels != nullptr, "labels are missing");
    require((params.initial_noise != nullptr) == (params.step_noise != nullptr), "give both kinds of noise, or none");
    require(params.seeds != nullptr || params.initial_noise != nullptr, "seeds are missing");
    require(params.program == nullptr || params.program_file == nullptr, "give a program's name or its file, not both");
    require(params.on_preview == nullptr || params.preview_every >= 1, "preview_every is not at least 1");
    for (std::int64_t i = 0; i < params.count; ++i) {
        check_label(bundle, params.labels[i]);
        if (params.away_from != nullptr && params.away_from[i] != -1) check_label(bundle, params.away_from[i]);
    }
    const bool projects = bundle.manifest.preview.has_value();
    if (images || (params.on_preview != nullptr && !projects)) bundle.require_graph("decoder");  // fails now, not later
}

// latents, `stride` numbers apart, by the bundle's projection (else its decoder) -> pictures
void preview(ditedge_sampler& sampler, const ditedge_params& params, const float* latents, std::size_t stride,
             std::int64_t step, std::int64_t first, std::int64_t batch) {
    const ditedge::Manifest& manifest = sampler.bundle->manifest;
    const auto side = static_cast<std::size_t>(manifest.model.input_size), channels = static_cast<std::size_t>(manifest.model.in_channels);
    const std::size_t plane = side * side, latent = plane * channels;
    std::vector<std::uint8_t> pictures;
    ditedge::ImageSize size = manifest.image;
    if (!manifest.preview) {
        std::vector<float> packed(static_cast<std::size_t>(batch) * latent);
        for (std::size_t b = 0; b < static_cast<std::size_t>(batch); ++b)
            std::copy_n(latents + b * stride, latent, packed.begin() + static_cast<std::ptrdiff_t>(b * latent));
        pictures.resize(static_cast<std::size_t>(batch) * size.bytes());
        sampler.loop->decode(packed.data(), batch, pictures.data());
    } else {
        const ditedge::PreviewInfo& projection = *manifest.preview;
        const auto scale = static_cast<std::size_t>(projection.scale), colours = projection.bias.size();
        size = {static_cast<std::int64_t>(side * scale), static_cast<std::int64_t>(side * scale), static_cast<std::int64_t>(colours)};
        pictures.resize(static_cast<std::size_t>(batch) * size.bytes());
        std::uint8_t* next = pictures.data();
        for (std::size_t b = 0; b < static_cast<std::size_t>(batch); ++b)
            for (std::size_t y = 0; y < side * scale; ++y)
                for (std::size_t x = 0; x < side * scale; ++x)
                    for (std::size_t k = 0; k < colours; ++k) {
                        float colour = projection.bias[k];
                        for (std::size_t c = 0; c < channels; ++c)
                            colour += projection.weight[k * channels + c] *
                                      latents[b * stride + c * plane + y / scale * side + x / scale];
                        const float pixel = 127.5f * colour + 128.0f;
                        *next++ = static_cast<std::uint8_t>(pixel > 255.0f ? 255.0f : pixel >= 0.0f ? pixel : 0.0f);
                    }
    }
    const ditedge_preview event = {sizeof event, step, first, batch, size.height, size.width, size.channels, pictures.data()};
    params.on_preview(&event, params.user);
}

// One batch after another: `write` gets each one's latents.
template <class Write>
void generate(ditedge_sampler& sampler, const ditedge_params& params, bool images, const Write& write) {
    const Bundle& bundle = *sampler.bundle;
    check_request(bundle, params, images);
    ditedge::Program program = params.program_file != nullptr ? ditedge::read_program(params.program_file)
                                                              : bundle.program(params.program);
    const std::int64_t slots = program.slots;
    if (params.on_preview != nullptr) program = ditedge::with_x0_slot(program);
    const double guidance = std::isnan(params.guidance) ? bundle.manifest.default_guidance : params.guidance;
    const std::size_t latent = bundle.latent_count();
    const std::int64_t batches = (params.count + params.batch - 1) / params.batch;
    std::vector<float> latents, shown;
    for (std::int64_t first = 0; first < params.count; first += params.batch) {
        const std::int64_t batch = std::min(params.batch, params.count - first);
        const auto size = static_cast<std::size_t>(batch);
        const std::vector<std::int64_t> labels(params.labels + first, params.labels + first + batch);
        std::vector<std::int64_t> away_from;
        if (params.away_from != nullptr) away_from.assign(params.away_from + first, params.away_from + first + batch);
        const auto tables = ditedge::step_tables(program, bundle.manifest.model, labels, guidance, away_from);
        const auto noise = [&](std::int64_t draw, float* numbers) {
            const auto skipped = static_cast<std::size_t>(first);
            if (params.initial_noise == nullptr) {
                for (std::size_t b = 0; b < size; ++b)
                    ditedge::standard_normal(params.seeds[skipped + b], static_cast<std::uint64_t>(draw), numbers + b * latent, latent);
            } else {
                const auto steps = static_cast<std::size_t>(std::max<std::int64_t>(0, draw - 1) * params.count);
                const float* drawn = draw == 0 ? params.initial_noise : params.step_noise + steps * latent;
                std::copy_n(drawn + skipped * latent, size * latent, numbers);
            }
        };
        const auto previews = [&](std::int64_t step) { return params.on_preview != nullptr && step % params.preview_every == 0; };
        const auto on_step = [&](std::int64_t step, const float* state) {
            const std::size_t stride = static_cast<std::size_t>(program.slots) * latent;
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
                preview(sampler, params, state + static_cast<std::size_t>(slots) * latent, stride, step, first, batch);
        };
        latents.resize(size * latent);
        const bool watched = params.on_progress != nullptr || params.on_preview != nullptr;
        const ditedge::Run run{program, tables, noise, sampler.cancel,
                               watched ? std::function<void(std::int64_t, const float*)>(on_step) : nullptr, previews};
        sampler.loop->sample(run, latents.data());
        write(static_cast<std::size_t>(first), batch, latents.data());
    }
}

}  // namespace

extern "C" {

const char* ditedge_version(void) { return DITEDGE_VERSION; }

const char* ditedge_last_error(void) { return last_error; }

const char* ditedge_status_name(ditedge_status status) {
    static const char* const names[] = {"ok", "argument error", "bundle error", "program error", "request error",
                                        "engine error", "no CUDA device", "cancelled", "out of memory", "internal error"};
    const auto index = static_cast<unsigned>(status);
    return index < sizeof names / sizeof *names ? names[index] : "unknown status";
}

ditedge_status ditedge_bundle_open(const char* path, int check_hashes, ditedge_bundle** bundle) {
    return guarded([&] {
        require(path != nullptr && bundle != nullptr, "path and bundle must not be null");
        *bundle = nullptr;
        *bundle = new ditedge_bundle{std::make_shared<const Bundle>(ditedge::open_bundle(path, check_hashes != 0))};
    });
}

void ditedge_bundle_close(ditedge_bundle* bundle) { delete bundle; }

ditedge_status ditedge_bundle_info(const ditedge_bundle* bundle, ditedge_info* info) {
    return guarded([&] {
        require(bundle != nullptr && info != nullptr, "bundle and info must not be null");
        const ditedge::Manifest& m = bundle->bundle->manifest;
        const ditedge_info full = {sizeof full, m.model.num_classes, m.model.null_class.value_or(-1), m.model.in_channels,
                                   m.model.input_size, m.model.input_size, m.image.height, m.image.width,
                                   m.image.channels, m.default_guidance};
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
        require(bundle != nullptr && steps != nullptr, "bundle and steps must not be null");
        *steps = bundle->bundle->program(name).steps;
    });
}

ditedge_status ditedge_find_class(const ditedge_bundle* bundle, const char* text, int64_t* label) {
    return guarded([&] {
        require(bundle != nullptr && text != nullptr && label != nullptr, "bundle, text and label must not be null");
        *label = bundle->bundle->label(text);
    });
}

ditedge_status ditedge_sampler_options_init(ditedge_sampler_options* options, size_t size) {
    return guarded([&] { narrowed(default_options(), options, size, "options"); });
}

ditedge_status ditedge_params_init(ditedge_params* params, size_t size) {
    return guarded([&] { narrowed(default_params(), params, size, "params"); });
}

ditedge_status ditedge_sampler_open(const ditedge_bundle* bundle, const ditedge_sampler_options* options,
                                    ditedge_sampler** sampler) {
    return guarded([&] {
        require(bundle != nullptr && sampler != nullptr, "bundle and sampler must not be null");
        *sampler = nullptr;
        const ditedge_sampler_options given = widened(options, default_options(), "options");
        require(given.threads >= 0 && given.device >= 0, "threads and device must not be negative");
        const ditedge::EngineOptions chosen{given.engine != nullptr ? given.engine : "onnxruntime",
                                            given.provider != nullptr ? given.provider : "cpu",
                                            given.library != nullptr ? given.library : "", given.threads, given.device};
        auto opened = std::make_unique<ditedge_sampler>();
        opened->bundle = bundle->bundle;
        opened->loop = ditedge::open_loop(bundle->bundle, chosen);
        *sampler = opened.release();
    });
}

void ditedge_sampler_close(ditedge_sampler* sampler) { delete sampler; }

ditedge_status ditedge_generate_images(ditedge_sampler* sampler, const ditedge_params* params, uint8_t* images,
                                       size_t bytes) {
    return guarded([&] {
        require(sampler != nullptr && params != nullptr && images != nullptr, "sampler, params and images must not be null");
        const ditedge_params given = widened(params, default_params(), "params");
        const std::size_t size = sampler->bundle->manifest.image.bytes();
        check_request(*sampler->bundle, given, true);
        require(bytes == size * static_cast<std::size_t>(given.count), "bytes is not the size of count images");
        generate(*sampler, given, true, [&](std::size_t first, std::int64_t batch, const float* latents) {
            sampler->loop->decode(latents, batch, images + first * size);
        });
    });
}

ditedge_status ditedge_generate_latents(ditedge_sampler* sampler, const ditedge_params* params, float* latents,
                                        size_t bytes) {
    return guarded([&] {
        require(sampler != nullptr && params != nullptr && latents != nullptr, "sampler, params and latents must not be null");
        const ditedge_params given = widened(params, default_params(), "params");
        const std::size_t count = sampler->bundle->latent_count();
        check_request(*sampler->bundle, given, false);
        require(bytes == sizeof(float) * count * static_cast<std::size_t>(given.count), "bytes is not the size of count latents");
        generate(*sampler, given, false, [&](std::size_t first, std::int64_t batch, const float* from) {
            std::copy_n(from, static_cast<std::size_t>(batch) * count, latents + first * count);
        });
    });
}

ditedge_status ditedge_decode(ditedge_sampler* sampler, const float* latents, int64_t count, uint8_t* images, size_t bytes) {
    return guarded([&] {
        require(sampler != nullptr && latents != nullptr && images != nullptr, "sampler, latents and images must not be null");
        require(count >= 1 && count <= kMaxImages, "count is not between 1 and 1048576");
        sampler->bundle->require_graph("decoder");
        require(bytes == sampler->bundle->manifest.image.bytes() * static_cast<std::size_t>(count),
                "bytes is not the size of count images");
        sampler->loop->decode(latents, count, images);
    });
}

void ditedge_cancel(ditedge_sampler* sampler) {
    if (sampler != nullptr) sampler->cancel.store(true);
}

void ditedge_cancel_reset(ditedge_sampler* sampler) {
    if (sampler != nullptr) sampler->cancel.store(false);
}

ditedge_status ditedge_noise(uint64_t seed, uint64_t draw, float* numbers, size_t count) {
    return guarded([&] {
        require(numbers != nullptr || count == 0, "numbers must not be null");
        ditedge::standard_normal(seed, draw, numbers, count);
    });
}

}  // extern "C"
