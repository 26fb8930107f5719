// A thin C++17 layer over ditedge.h: handles that close themselves, errors as exceptions. Header only.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ditedge.h"

namespace ditedge::api {

class Failure : public std::runtime_error {
public:
    Failure(ditedge_status status, const char* message) : std::runtime_error(message), status_(status) {}
    ditedge_status status() const noexcept { return status_; }

private:
    ditedge_status status_;
};

inline void check(ditedge_status status) {
    if (status != DITEDGE_OK) throw Failure(status, ditedge_last_error());
}

struct Close {
    void operator()(ditedge_bundle* bundle) const noexcept { ditedge_bundle_close(bundle); }
    void operator()(ditedge_session* session) const noexcept { ditedge_session_close(session); }
    void operator()(ditedge_run* run) const noexcept { ditedge_run_close(run); }
    void operator()(ditedge_prompt* prompt) const noexcept { ditedge_prompt_close(prompt); }
};

// Numbers of a picture or a latent of width x height pixels, 0: the model's own. 0 where there is no such size: the call says so.
struct Shape {
    ditedge_info info;
    std::int64_t image(std::int64_t width, std::int64_t height) const {
        return info.image_channels * side(width, info.image_width, 1) * side(height, info.image_height, 1);
    }
    std::int64_t latent(std::int64_t width, std::int64_t height) const {
        return info.latent_channels * side(width, info.latent_width, info.size_factor) * side(height, info.latent_height, info.size_factor);
    }

private:
    std::int64_t side(std::int64_t pixels, std::int64_t own, std::int64_t factor) const {
        if (pixels == 0) return own;
        return pixels < 0 || pixels > info.size_largest ? 0 : pixels / factor;
    }
};

class Bundle {
public:
    explicit Bundle(const std::string& folder, bool check_hashes = true) {
        ditedge_bundle* opened = nullptr;
        check(ditedge_bundle_open(folder.c_str(), check_hashes ? 1 : 0, &opened));
        handle_.reset(opened);
    }
    // Only if one of these keys signed it: PEM files of Ed25519 public keys.
    static Bundle open_trusted(const std::string& folder, const std::vector<std::string>& keys) {
        std::vector<const char*> paths;
        for (const std::string& key : keys) paths.push_back(key.c_str());
        ditedge_bundle* opened = nullptr;
        check(ditedge_bundle_open_trusted(folder.c_str(), paths.data(), paths.size(), &opened));
        return Bundle(opened);
    }
    const ditedge_bundle* get() const { return handle_.get(); }
    ditedge_info info() const {
        ditedge_info info{};
        info.size = sizeof info;
        check(ditedge_bundle_info(get(), &info));
        return info;
    }
    std::int64_t label(const std::string& text) const {
        std::int64_t label = 0;
        check(ditedge_find_class(get(), text.c_str(), &label));
        return label;
    }
    std::int64_t steps(const char* program = nullptr) const {
        std::int64_t steps = 0;
        check(ditedge_program_steps(get(), program, &steps));
        return steps;
    }
    static std::int64_t steps_of_file(const std::string& program_file) {
        std::int64_t steps = 0;
        check(ditedge_program_file_steps(program_file.c_str(), &steps));
        return steps;
    }
    std::vector<std::string> programs() const {
        std::vector<std::string> names;
        for (std::int64_t i = 0; i < ditedge_program_count(get()); ++i) names.emplace_back(ditedge_program_name(get(), i));
        return names;
    }

private:
    explicit Bundle(ditedge_bundle* opened) : handle_(opened) {}
    std::unique_ptr<ditedge_bundle, Close> handle_{};
};

// What an image is of, or is guided away from, where the model takes prompts.
class Prompt {
public:
    // By its token ids, as the bundle's tokenizer makes them.
    Prompt(const Bundle& bundle, const std::vector<std::int64_t>& ids) : Prompt(bundle, std::vector<std::vector<std::int64_t>>{ids}) {}
    // By those of each text encoder.
    Prompt(const Bundle& bundle, const std::vector<std::vector<std::int64_t>>& lists) {
        std::vector<std::int64_t> ids;
        std::vector<std::size_t> counts;
        for (const std::vector<std::int64_t>& list : lists) {
            ids.insert(ids.end(), list.begin(), list.end());
            counts.push_back(list.size());
        }
        ids.push_back(0);  // no null pointer, where a list is empty: that is said
        ditedge_prompt* opened = nullptr;
        check(ditedge_prompt_of_ids(bundle.get(), ids.data(), counts.data(), counts.size(), &opened));
        handle_.reset(opened);
    }
    // One that `ditedge encode` recorded, by its file.
    Prompt(const Bundle& bundle, const std::string& file) {
        ditedge_prompt* opened = nullptr;
        check(ditedge_prompt_open(bundle.get(), file.c_str(), &opened));
        handle_.reset(opened);
    }
    const ditedge_prompt* get() const { return handle_.get(); }

private:
    std::unique_ptr<ditedge_prompt, Close> handle_{};
};

inline ditedge_session_options default_options() {
    ditedge_session_options options{};
    check(ditedge_session_options_init(&options, sizeof options));
    return options;
}

inline ditedge_params default_params() {
    ditedge_params params{};
    check(ditedge_params_init(&params, sizeof params));
    return params;
}

inline ditedge_run_params default_run_params() {
    ditedge_run_params params{};
    check(ditedge_run_params_init(&params, sizeof params));
    return params;
}

// One image that is sampled step by step: see Session::advance.
class Run {
public:
    Run(const Bundle& bundle, const ditedge_run_params& params)
        : numbers_(static_cast<std::size_t>(Shape{bundle.info()}.latent(params.width, params.height))) {
        ditedge_run* opened = nullptr;
        check(ditedge_run_open(bundle.get(), &params, &opened));
        handle_.reset(opened);
    }
    ditedge_run* get() const { return handle_.get(); }
    std::int64_t steps() const { return far().second; }
    std::int64_t step() const { return far().first; }  // steps done
    bool done() const { return step() == steps(); }
    // [C, H, W]
    std::vector<float> latent() const {
        std::vector<float> latent(numbers_);
        check(ditedge_run_latent(get(), latent.data(), latent.size() * sizeof(float)));
        return latent;
    }

private:
    std::pair<std::int64_t, std::int64_t> far() const {
        std::int64_t done = 0, steps = 0;
        check(ditedge_run_steps(get(), &done, &steps));
        return {done, steps};
    }
    std::size_t numbers_;  // of its latent
    std::unique_ptr<ditedge_run, Close> handle_{};
};

class Session {
public:
    explicit Session(const Bundle& bundle, const ditedge_session_options& options = default_options()) : shape_{bundle.info()} {
        ditedge_session* opened = nullptr;
        check(ditedge_session_open(bundle.get(), &options, &opened));
        handle_.reset(opened);
    }
    ditedge_session* get() const { return handle_.get(); }
    // [count, height, width, channels]
    std::vector<std::uint8_t> images(const ditedge_params& params) {
        std::vector<std::uint8_t> images;
        this->images(params, images);
        return images;
    }
    // The same into `images`, which is filled when this throws DITEDGE_ERROR_NOT_FINITE, too.
    void images(const ditedge_params& params, std::vector<std::uint8_t>& images) {
        images.assign(numbers(params.count, shape_.image(params.width, params.height)), 0);
        check(ditedge_generate_images(get(), &params, images.data(), images.size()));
    }
    // [count, C, H, W]
    std::vector<float> latents(const ditedge_params& params) {
        std::vector<float> latents;
        this->latents(params, latents);
        return latents;
    }
    void latents(const ditedge_params& params, std::vector<float>& latents) {
        latents.assign(numbers(params.count, shape_.latent(params.width, params.height)), 0.0f);
        check(ditedge_generate_latents(get(), &params, latents.data(), latents.size() * sizeof(float)));
    }
    // latents [count, C, H, W] of pictures of width x height pixels, 0: the model's own -> [count, height, width, channels]
    std::vector<std::uint8_t> decode(const std::vector<float>& latents, std::int64_t width = 0, std::int64_t height = 0) {
        std::vector<std::uint8_t> images;
        decode(latents, images, width, height);
        return images;
    }
    void decode(const std::vector<float>& latents, std::vector<std::uint8_t>& images, std::int64_t width = 0, std::int64_t height = 0) {
        const std::size_t each = static_cast<std::size_t>(shape_.latent(width, height));
        if (latents.empty() || each == 0 || latents.size() % each != 0)
            throw Failure(DITEDGE_ERROR_ARGUMENT, "latents are not a whole number of latents, one at least");
        const auto count = static_cast<std::int64_t>(latents.size() / each);
        images.assign(numbers(count, shape_.image(width, height)), 0);
        check(ditedge_decode_size(get(), latents.data(), count, width, height, images.data(), images.size()));
    }
    // One step of each run that is not done, in a batch; each becomes the image that it is alone.
    void advance(const std::vector<Run*>& runs) {
        std::vector<ditedge_run*> handles;
        for (const Run* run : runs) handles.push_back(run->get());
        check(ditedge_advance(get(), handles.data(), handles.size()));
    }
    // What went on otherwise than it was asked for, so far.
    std::vector<std::string> warnings() const {
        std::vector<std::string> said;
        while (const char* text = ditedge_session_warning(get(), static_cast<std::int64_t>(said.size()))) said.emplace_back(text);
        return said;
    }
    void cancel() { ditedge_cancel(get()); }                                          // from any thread
    void cancel(std::uint64_t request) { ditedge_cancel_request(get(), request); }  // calls numbered up to this

private:
    // One number at least: the call itself refuses what cannot be made, and wants no null pointer.
    static std::size_t numbers(std::int64_t count, std::int64_t each) {
        const bool sane = count > 0 && count <= (1 << 20) && each > 0;
        if (sane && static_cast<std::uint64_t>(count * each) > SIZE_MAX / sizeof(float)) throw std::bad_alloc();
        return sane ? static_cast<std::size_t>(count * each) : 1;
    }
    Shape shape_;
    std::unique_ptr<ditedge_session, Close> handle_{};
};

}  // namespace ditedge::api
