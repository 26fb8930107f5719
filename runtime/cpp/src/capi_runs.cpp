// The C interface: prompts, and images that are sampled step by step.
#include <cmath>
#include <limits>
#include <set>

#include "capi.hpp"
#include "generate.hpp"
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

ditedge_run_params default_run_params() {
    ditedge_run_params params{};
    params.size = sizeof params;
    params.away_from = -1;
    params.guidance = std::numeric_limits<double>::quiet_NaN();
    return params;
}

}  // namespace

extern "C" {

ditedge_status ditedge_prompt_of_ids(const ditedge_bundle* bundle, const int64_t* ids, const size_t* counts, size_t lists, ditedge_prompt** prompt) {
    return guarded([&] {
        clear<ditedge_prompt*>(prompt, nullptr);
        require(bundle != nullptr && prompt != nullptr && ids != nullptr && counts != nullptr, "bundle, ids, counts and prompt must not be null");
        require(lists >= 1 && lists <= ditedge::kMaxLists, "lists is not between 1 and 16");
        std::vector<std::vector<std::int64_t>> all;
        for (std::size_t i = 0; i < lists; ++i) {
            require(counts[i] <= ditedge::kMaxIds, "a count is more than 1048576");
            all.emplace_back(ids, ids + counts[i]);
            ids += counts[i];
        }
        *prompt = new ditedge_prompt{bundle->bundle, ditedge::prompt_of_ids(*bundle->bundle, std::move(all))};
    });
}

ditedge_status ditedge_prompt_open(const ditedge_bundle* bundle, const char* file, ditedge_prompt** prompt) {
    return guarded([&] {
        clear<ditedge_prompt*>(prompt, nullptr);
        require(bundle != nullptr && file != nullptr && prompt != nullptr, "bundle, file and prompt must not be null");
        *prompt = new ditedge_prompt{bundle->bundle, ditedge::read_prompt(*bundle->bundle, file)};
    });
}

void ditedge_prompt_close(ditedge_prompt* prompt) { delete prompt; }

ditedge_status ditedge_run_params_init(ditedge_run_params* params, size_t size) {
    return guarded([&] { narrowed(default_run_params(), params, size, "params"); });
}

ditedge_status ditedge_run_open(const ditedge_bundle* bundle, const ditedge_run_params* params, ditedge_run** run) {
    return guarded([&] {
        clear<ditedge_run*>(run, nullptr);
        require(bundle != nullptr && params != nullptr && run != nullptr, "bundle, params and run must not be null");
        const ditedge_run_params given = widened(params, default_run_params(), "params");
        const Bundle& opened = *bundle->bundle;
        const Size latent = latent_of(opened, given.width, given.height);
        const double guidance = ditedge::guidance_of(opened, given.guidance);
        const std::size_t numbers = opened.latent_count(latent);
        const auto subject = subject_of(opened, {given.label, given.away_from, given.prompt, given.negative}, guidance, latent);
        ditedge::Program program = ditedge::chosen_program(opened, given.program, given.program_file, latent, given.other_process != 0);
        ditedge::check_room(sizeof(float) * static_cast<double>(program.slots) * static_cast<double>(numbers));
        if (given.given_latent != nullptr && !ditedge::finite(given.given_latent, numbers))
            ditedge::fail_request("the given latent has infinite numbers or NaN");
        auto tables = ditedge::image_tables(program, opened.manifest.model, subject, strength_of(opened, guidance));
        *run = new ditedge_run{{bundle->bundle, std::move(program), std::move(tables), latent, given.seed, given.given_latent}};
    });
}

void ditedge_run_close(ditedge_run* run) { delete run; }

ditedge_status ditedge_advance(ditedge_session* session, ditedge_run* const* runs, size_t count) {
    return guarded([&] {
        require(session != nullptr && (runs != nullptr || count == 0), "session and runs must not be null");
        require(count <= static_cast<std::size_t>(ditedge::kMaxBatch), "count is not between 0 and 4096");
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
        const std::size_t count = run->image.bundle->latent_count(run->image.latent);
        check_bytes(bytes, sizeof(float) * count, 1, "bytes is not the size of a latent");
        std::copy_n(run->image.state.begin(), count, latent);
    });
}

}  // extern "C"
