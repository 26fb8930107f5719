// The C interface: checks arguments, turns exceptions into status codes, cuts a request into batches.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <set>

#include "bundle.hpp"
#include "ditedge.h"
#include "engine.hpp"
#include "error.hpp"
#include "image_run.hpp"
#include "noise.hpp"
#include "tables.hpp"

using ditedge::Bundle;
using ditedge::Error;

struct ditedge_bundle {
    std::shared_ptr<const Bundle> bundle;
};

struct ditedge_run {
    ditedge::ImageRun image;
};

struct ditedge_session {
    std::shared_ptr<const Bundle> bundle;
    std::unique_ptr<ditedge::Loop> loop;
    pid_t process = getpid();
    std::mutex mutex;  // of the two below
    std::uint64_t request = 0, cancelled_requests = 0;  // of the call that is going on, or 0; requests up to this number
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

// Where each field begins: a struct of another version ends where one of ours begins, or where ours ends.
#define AT(field) offsetof(T, field)
template <class T>
bool ends_at_a_field(std::size_t size) {
    std::vector<std::size_t> ends = {sizeof(T)};
    if constexpr (std::is_same_v<T, ditedge_info>)
        ends.insert(ends.end(), {AT(num_classes), AT(null_class), AT(latent_channels), AT(latent_height), AT(latent_width),
                                 AT(image_height), AT(image_width), AT(image_channels), AT(default_guidance)});
    else if constexpr (std::is_same_v<T, ditedge_session_options>)
        ends.insert(ends.end(), {AT(engine), AT(provider), AT(library), AT(threads), AT(device), AT(spin), AT(tf32), AT(no_cuda_graph)});
    else if constexpr (std::is_same_v<T, ditedge_run_params>)
        ends.insert(ends.end(), {AT(label), AT(seed), AT(away_from), AT(guidance), AT(program), AT(program_file),
                                 AT(given_latent), AT(other_process)});
    else
        ends.insert(ends.end(), {AT(count), AT(labels), AT(seeds), AT(away_from), AT(guidance), AT(program), AT(program_file),
                                 AT(batch), AT(initial_noise), AT(step_noise), AT(step_noise_bytes), AT(on_progress),
                                 AT(on_preview), AT(user), AT(preview_every), AT(request), AT(check_finite), AT(other_process)});
    return std::find(ends.begin(), ends.end(), size) != ends.end();
}
#undef AT

// The caller's struct, which may be older (smaller) than ours: fields that it lacks keep their defaults.
template <class T>
T widened(const T* given, T defaults, const char* name) {
    if (given == nullptr) return defaults;
    if (!ends_at_a_field<T>(given->size))
        throw Error(DITEDGE_ERROR_ARGUMENT, std::string(name) + " was made for another version of this library: call its _init function");
    std::memcpy(&defaults, given, given->size);
    return defaults;
}

// Our struct, cut to the size of the caller's.
template <class T>
void narrowed(const T& value, T* given, std::size_t size, const char* name) {
    if (given == nullptr || !ends_at_a_field<T>(size))
        throw Error(DITEDGE_ERROR_ARGUMENT, std::string(name) + " is null or of a size that no version of this library has");
    std::memcpy(given, &value, size);
    given->size = size;
}

// What a function gives is nothing until it has something to give.
template <class T>
void clear(T* given, T nothing) {
    if (given != nullptr) *given = nothing;
}

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

ditedge_run_params default_run_params() {
    ditedge_run_params params{};
    params.size = sizeof params;
    params.away_from = -1;
    params.guidance = std::numeric_limits<double>::quiet_NaN();
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
    require(params.step_noise == nullptr || params.initial_noise != nullptr, "step_noise is given, and initial_noise is not");
    require(params.seeds != nullptr || params.initial_noise != nullptr, "seeds are missing");
    require(params.on_preview == nullptr || params.preview_every >= 1, "preview_every is not at least 1");
    for (std::int64_t i = 0; i < params.count; ++i) {
        check_label(bundle, params.labels[i]);
        if (params.away_from != nullptr && params.away_from[i] != -1) check_label(bundle, params.away_from[i]);
    }
    const bool previews = bundle.manifest.graphs.count("preview") != 0;
    if (images || (params.on_preview != nullptr && !previews)) bundle.require_graph("decoder");  // fails now, not later
}

// By name, or from a file; one that does not fit the bundle is refused.
ditedge::Program chosen_program(const Bundle& bundle, const char* name, const char* file, bool other_process) {
    require(name == nullptr || file == nullptr, "give a program's name or its file, not both");
    ditedge::Program program = file != nullptr ? ditedge::read_program(file) : bundle.program(name);
    if (program.process && !other_process) check_process(program.name, *program.process, bundle.manifest.process);
    for (const std::string& graph : program.graph) bundle.require_graph(graph);
    return program;
}

// Whether a caller's buffer is one of `count` things of `each` bytes: in 64 bits, whatever size_t is.
void check_bytes(std::size_t bytes, std::uint64_t each, std::int64_t count, const char* complaint) {
    require(bytes == each * static_cast<std::uint64_t>(count), complaint);
}

// Where size_t has 32 bits, a product of sizes may be small again: what it should have been does not fit.
void check_room(double bytes) {
    if (bytes > static_cast<double>(PTRDIFF_MAX)) throw std::bad_alloc();
}

// Given noise is as long as the program needs it.
void check_noise(const Bundle& bundle, const ditedge::Program& program, const ditedge_params& params) {
    bool draws = false;
    for (std::int64_t step = 0; step < program.steps; ++step) draws = draws || program.draws_noise(step);
    if (draws && params.initial_noise != nullptr && params.step_noise == nullptr)
        throw Error(DITEDGE_ERROR_ARGUMENT, "step_noise is missing: program '" + program.name + "' adds noise");
    const std::uint64_t wanted = sizeof(float) * bundle.latent_count() * static_cast<std::uint64_t>(params.count * program.steps);
    if (params.initial_noise != nullptr) check_room(sizeof(float) * static_cast<double>(bundle.latent_count()) * static_cast<double>(params.count));
    if (params.step_noise != nullptr && params.step_noise_bytes != wanted)
        throw Error(DITEDGE_ERROR_ARGUMENT, "step_noise_bytes is " + std::to_string(params.step_noise_bytes) + ", and " +
                                                std::to_string(program.steps) + " steps of count latents are " + std::to_string(wanted));
}

// What a batch needs at least.
void check_memory(const Bundle& bundle, const ditedge::Program& program, const ditedge_params& params) {
    const ditedge::ModelInfo& model = bundle.manifest.model;
    const double batch = static_cast<double>(std::min(params.batch, params.count)), slots = static_cast<double>(program.slots) + 1;
    const double states = batch * slots * static_cast<double>(bundle.latent_count());
    const std::set<double> factors(program.guidance.begin(), program.guidance.end());
    const double tables = batch * static_cast<double>(program.steps) * slots * (slots + 2) +
                          2 * batch * batch * static_cast<double>(model.out_channels) * static_cast<double>(factors.size());
    const double rows = (1 + batch) * 2 * static_cast<double>(bundle.manifest.modulation_width);
    check_room(sizeof(float) * std::max({states, tables, rows, batch * static_cast<double>(std::max(bundle.manifest.image.bytes(), bundle.manifest.preview.bytes()))}));
}

// The same of a step of images that go their own ways.
void check_memory(const std::vector<ditedge::ImageRun*>& images) {
    double states = 0, rows = 0;
    for (const ditedge::ImageRun* image : images) {
        const auto width = static_cast<double>(image->bundle->manifest.modulation_width);
        states += static_cast<double>(image->state.size());
        rows += std::max(static_cast<double>(image->tables.conditions.rows) * width, ditedge::kRunModulationBytes / 4.0);
    }
    const double count = static_cast<double>(images.size());
    const double combine = images.empty() ? 0 : 2 * count * count * static_cast<double>(images[0]->tables.out_channels);
    check_room(sizeof(float) * std::max({states, rows, combine}));
}

// A call that is going on. No earlier cancel counts, unless it was meant for this one.
class Call {
public:
    Call(ditedge_session& session, std::uint64_t request) : session_(session) {
        if (session.process != getpid())
            ditedge::fail_engine("the session was opened before fork(), in process " + std::to_string(session.process) +
                                 ", and its threads stayed there: open one in this process");
        const std::lock_guard<std::mutex> lock(session.mutex);
        session.loop->begin();
        if (request != 0 && request <= session.cancelled_requests)
            ditedge::fail_cancelled("before its first step: request " + std::to_string(request) + " was cancelled");
        session.request = request;
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;
    ~Call() {
        const std::lock_guard<std::mutex> lock(session_.mutex);
        session_.request = 0;
    }

private:
    ditedge_session& session_;
};

bool finite(const float* numbers, std::size_t count) {
    return std::all_of(numbers, numbers + count, [](float number) { return std::isfinite(number); });
}

// Images with an infinite number or NaN (runtime/loop/finite.py).
class Overflows {
public:
    // step: after which it was so; 0: nobody looked.
    void add(const Bundle& bundle, const ditedge_params& params, std::int64_t image, std::int64_t step) {
        if (++count_ > kNamed) return;
        const std::int64_t label = params.labels[image];
        const auto& names = bundle.manifest.labels;
        const bool named = static_cast<std::uint64_t>(label) < names.size();
        text_ += (count_ > 1 ? ", " : "") + ("image " + std::to_string(image)) + " (class " + std::to_string(label) +
                 (label == bundle.manifest.model.null_class ? " no class" : named ? " " + names[static_cast<std::size_t>(label)] : "");
        if (params.initial_noise == nullptr) text_ += ", seed " + std::to_string(params.seeds[image]);
        text_ += step > 0 ? ", from step " + std::to_string(step) + " on)" : ")";
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
    static constexpr std::int64_t kNamed = 4;  // images that a sentence names
    std::int64_t count_ = 0;
    std::string text_;
};

// Images of given latents with an infinite number or NaN become zeros. Throws Error (not finite) if there are any.
void blacken_not_finite(const Bundle& bundle, const float* latents, std::int64_t count, std::uint8_t* images) {
    const std::size_t latent = bundle.latent_count(), size = bundle.manifest.image.bytes();
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

// latents, `stride` numbers apart, by the graph `preview` (else the decoder) -> pictures; no number has no colour
void preview(ditedge_session& session, const ditedge_params& params, const float* latents, std::size_t stride,
             std::int64_t step, std::int64_t first, std::int64_t batch) {
    const char* graph = session.bundle->manifest.graphs.count("preview") != 0 ? "preview" : "decoder";
    const ditedge::ImageSize& size = session.bundle->manifest.picture_size(graph);
    const std::size_t latent = session.bundle->latent_count(), count = static_cast<std::size_t>(batch);
    std::vector<float> packed(count * latent);
    for (std::size_t b = 0; b < count; ++b)
        std::transform(latents + b * stride, latents + b * stride + latent, packed.begin() + static_cast<std::ptrdiff_t>(b * latent),
                       [](float number) { return std::isfinite(number) ? number : 0.0f; });
    std::vector<std::uint8_t> pictures(count * size.bytes());
    session.loop->decode(graph, packed.data(), batch, pictures.data());
    const ditedge_preview event = {sizeof event, step, first, batch, size.height, size.width, size.channels, pictures.data()};
    params.on_preview(&event, params.user);
}

// One batch after another: `write` gets each one's latents, zeros for an image that is not `good`. Throws Error (not finite)
// when all are written.
template <class Write>
void generate(ditedge_session& session, const ditedge_params& params, bool images, const Write& write) {
    const Bundle& bundle = *session.bundle;
    check_request(bundle, params, images);
    ditedge::Program program = chosen_program(bundle, params.program, params.program_file, params.other_process != 0);
    const std::int64_t slots = program.slots;
    check_noise(bundle, program, params);
    check_memory(bundle, program, params);
    const Call call(session, params.request);
    if (params.on_preview != nullptr) program = ditedge::with_x0_slot(program);
    const double guidance = std::isnan(params.guidance) ? bundle.manifest.default_guidance : params.guidance;
    const std::size_t latent = bundle.latent_count();
    const std::int64_t batches = (params.count + params.batch - 1) / params.batch;
    std::vector<float> latents, shown;
    Overflows overflows;
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
                preview(session, params, state + static_cast<std::size_t>(slots) * latent, stride, step, first, batch);
        };
        latents.resize(size * latent);
        const bool watched = params.on_progress != nullptr || params.on_preview != nullptr || params.check_finite != 0;
        const auto wants_state = [&](std::int64_t step) { return params.check_finite != 0 || previews(step); };
        const ditedge::Run run{program, tables, noise, session.loop->cancelled,
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

}  // namespace

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

ditedge_status ditedge_run_params_init(ditedge_run_params* params, size_t size) {
    return guarded([&] { narrowed(default_run_params(), params, size, "params"); });
}

ditedge_status ditedge_run_open(const ditedge_bundle* bundle, const ditedge_run_params* params, ditedge_run** run) {
    return guarded([&] {
        clear<ditedge_run*>(run, nullptr);
        require(bundle != nullptr && params != nullptr && run != nullptr, "bundle, params and run must not be null");
        const ditedge_run_params given = widened(params, default_run_params(), "params");
        const Bundle& opened = *bundle->bundle;
        check_label(opened, given.label);
        if (given.away_from != -1) check_label(opened, given.away_from);
        ditedge::Program program = chosen_program(opened, given.program, given.program_file, given.other_process != 0);
        check_room(sizeof(float) * static_cast<double>(program.slots) * static_cast<double>(opened.latent_count()));
        if (given.given_latent != nullptr && !finite(given.given_latent, opened.latent_count()))
            ditedge::fail_request("the given latent has infinite numbers or NaN");
        const double guidance = std::isnan(given.guidance) ? opened.manifest.default_guidance : given.guidance;
        auto tables = ditedge::image_tables(program, opened.manifest.model, given.label, guidance, given.away_from);
        *run = new ditedge_run{{bundle->bundle, std::move(program), std::move(tables), given.seed, given.given_latent}};
    });
}

void ditedge_run_close(ditedge_run* run) { delete run; }

ditedge_status ditedge_advance(ditedge_session* session, ditedge_run* const* runs, size_t count) {
    return guarded([&] {
        require(session != nullptr && (runs != nullptr || count == 0), "session and runs must not be null");
        require(count <= static_cast<std::size_t>(kMaxBatch), "count is not between 0 and 4096");
        std::set<const ditedge_run*> once(runs, runs + count);
        require(once.size() == count, "the same run is given twice: each takes one step at a time");
        require(once.count(nullptr) == 0, "a run is null");
        std::vector<ditedge::ImageRun*> images;
        for (std::size_t i = 0; i < count; ++i) {
            require(runs[i]->image.bundle == session->bundle, "a run was opened for another bundle than the session's");
            images.push_back(&runs[i]->image);
        }
        check_memory(images);
        const Call call(*session, 0);
        session->loop->advance(images);
    });
}

ditedge_status ditedge_run_steps(const ditedge_run* run, int64_t* done, int64_t* steps) {
    return guarded([&] {
        clear<int64_t>(done, 0), clear<int64_t>(steps, 0);
        require(run != nullptr && done != nullptr && steps != nullptr, "run, done and steps must not be null");
        *done = run->image.step, *steps = run->image.program.steps;
    });
}

ditedge_status ditedge_run_latent(const ditedge_run* run, float* latent, size_t bytes) {
    return guarded([&] {
        require(run != nullptr && latent != nullptr, "run and latent must not be null");
        const std::size_t count = run->image.bundle->latent_count();
        check_bytes(bytes, sizeof(float) * count, 1, "bytes is not the size of a latent");
        std::copy_n(run->image.state.begin(), count, latent);
    });
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
        const std::size_t size = session->bundle->manifest.image.bytes();
        check_request(*session->bundle, given, true);
        check_bytes(bytes, size, given.count, "bytes is not the size of count images");
        generate(*session, given, true, [&](std::size_t first, const std::vector<bool>& good, const float* latents) {
            session->loop->decode("decoder", latents, static_cast<std::int64_t>(good.size()), images + first * size);
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
        const std::size_t count = session->bundle->latent_count();
        check_request(*session->bundle, given, false);
        check_bytes(bytes, sizeof(float) * count, given.count, "bytes is not the size of count latents");
        generate(*session, given, false, [&](std::size_t first, const std::vector<bool>& good, const float* from) {
            std::copy_n(from, good.size() * count, latents + first * count);
        });
    });
}

ditedge_status ditedge_decode(ditedge_session* session, const float* latents, int64_t count, uint8_t* images, size_t bytes) {
    return guarded([&] {
        require(session != nullptr && latents != nullptr && images != nullptr, "session, latents and images must not be null");
        require(count >= 1 && count <= kMaxImages, "count is not between 1 and 1048576");
        session->bundle->require_graph("decoder");
        check_bytes(bytes, session->bundle->manifest.image.bytes(), count, "bytes is not the size of count images");
        const Call call(*session, 0);
        session->loop->decode("decoder", latents, count, images);
        blacken_not_finite(*session->bundle, latents, count, images);
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
