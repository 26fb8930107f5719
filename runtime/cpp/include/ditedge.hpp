// A thin C++17 layer over ditedge.h: handles that close themselves, errors as exceptions. Header only.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
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
    void operator()(ditedge_sampler* sampler) const noexcept { ditedge_sampler_close(sampler); }
};

class Bundle {
public:
    explicit Bundle(const std::string& folder, bool check_hashes = true) {
        ditedge_bundle* opened = nullptr;
        check(ditedge_bundle_open(folder.c_str(), check_hashes ? 1 : 0, &opened));
        handle_.reset(opened);
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
    std::vector<std::string> programs() const {
        std::vector<std::string> names;
        for (std::int64_t i = 0; i < ditedge_program_count(get()); ++i) names.emplace_back(ditedge_program_name(get(), i));
        return names;
    }

private:
    std::unique_ptr<ditedge_bundle, Close> handle_;
};

inline ditedge_sampler_options default_options() {
    ditedge_sampler_options options{};
    check(ditedge_sampler_options_init(&options, sizeof options));
    return options;
}

inline ditedge_params default_params() {
    ditedge_params params{};
    check(ditedge_params_init(&params, sizeof params));
    return params;
}

class Sampler {
public:
    explicit Sampler(const Bundle& bundle, const ditedge_sampler_options& options = default_options()) : info_(bundle.info()) {
        ditedge_sampler* opened = nullptr;
        check(ditedge_sampler_open(bundle.get(), &options, &opened));
        handle_.reset(opened);
    }
    // [count, height, width, channels]
    std::vector<std::uint8_t> images(const ditedge_params& params) {
        std::vector<std::uint8_t> images(numbers(params, info_.image_height * info_.image_width * info_.image_channels));
        check(ditedge_generate_images(handle_.get(), &params, images.data(), images.size()));
        return images;
    }
    // [count, C, H, W]
    std::vector<float> latents(const ditedge_params& params) {
        std::vector<float> latents(numbers(params, info_.latent_channels * info_.latent_height * info_.latent_width));
        check(ditedge_generate_latents(handle_.get(), &params, latents.data(), latents.size() * sizeof(float)));
        return latents;
    }
    void cancel() { ditedge_cancel(handle_.get()); }  // from any thread
    void reset() { ditedge_cancel_reset(handle_.get()); }

private:
    // One number at least: the call itself refuses what cannot be made, and wants no null pointer.
    static std::size_t numbers(const ditedge_params& params, std::int64_t each) {
        const bool sane = params.count > 0 && params.count <= (1 << 20) && each > 0;
        return sane ? static_cast<std::size_t>(params.count * each) : 1;
    }
    ditedge_info info_;
    std::unique_ptr<ditedge_sampler, Close> handle_;
};

}  // namespace ditedge::api
