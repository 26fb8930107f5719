// ditedge-stress BUNDLE ENGINE LIBRARY [HOSTILE...]: what sanitizers watch. Two sessions of one bundle in two threads, one
// cancelled by a third, previews and progress; then every hostile bundle is opened and, where that works, sampled from.
#include <atomic>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>

#include "ditedge.hpp"

namespace {

using ditedge::api::Bundle;
using ditedge::api::Run;
using ditedge::api::Session;

ditedge_params request(const std::vector<std::int64_t>& labels, const std::vector<std::uint64_t>& seeds) {
    ditedge_params params = ditedge::api::default_params();
    params.count = static_cast<std::int64_t>(labels.size());
    params.labels = labels.data(), params.seeds = seeds.data();
    params.batch = 2;
    params.on_preview = [](const ditedge_preview* preview, void*) {
        std::atomic<unsigned> sum{0};  // reads every byte that was promised
        for (std::int64_t i = 0; i < preview->batch * preview->height * preview->width * preview->channels; ++i) sum += preview->images[i];
    };
    params.preview_every = 5;
    return params;
}

ditedge_session_options one_thread(char** argv) {
    ditedge_session_options options = ditedge::api::default_options();
    options.threads = 1;
    options.engine = argv[2], options.library = argv[3];
    return options;
}

// Two images of which the second starts three steps later: each is the one that it is alone.
bool step_by_step(const Bundle& bundle, Session& session) {
    std::vector<std::vector<float>> alone;
    std::vector<std::unique_ptr<Run>> images;
    std::vector<Run*> runs;
    for (std::uint64_t seed : {4, 5}) {
        const std::vector<std::int64_t> label = {1};
        const std::vector<std::uint64_t> seeds = {seed};
        ditedge_params plain = request(label, seeds);
        plain.on_preview = nullptr;
        alone.push_back(session.latents(plain));
        ditedge_run_params params = ditedge::api::default_run_params();
        params.label = label[0], params.seed = seed;
        images.push_back(std::make_unique<Run>(bundle, params));
        runs.push_back(images.back().get());
        for (int i = 0; i < 3; ++i) session.advance(runs);
    }
    while (!runs[0]->done() || !runs[1]->done()) session.advance(runs);
    return runs[0]->latent() == alone[0] && runs[1]->latent() == alone[1];
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 4) return 2;
    const std::vector<std::int64_t> labels = {1, 2, 3};
    const std::vector<std::uint64_t> seeds = {4, 5, 6};
    const Bundle bundle(argv[1]);
    Session first(bundle, one_thread(argv)), second(bundle, one_thread(argv));
    std::vector<std::uint8_t> pictures[2];
    std::thread one([&] { pictures[0] = first.images(request(labels, seeds)); });
    std::thread two([&] { pictures[1] = second.images(request(labels, seeds)); });
    one.join();
    two.join();
    if (pictures[0] != pictures[1]) return std::puts("pictures differ"), 1;

    if (std::string(argv[2]) == "onnxruntime" && !step_by_step(bundle, first)) return std::puts("step by step differs"), 1;

    std::atomic<bool> started{false};
    const std::vector<std::int64_t> many(1000, 1);
    const std::vector<std::uint64_t> numbers(1000, 1);
    std::thread worker([&] {
        ditedge_params params = request(many, numbers);
        params.user = &started;
        params.on_progress = [](const ditedge_progress*, void* user) { static_cast<std::atomic<bool>*>(user)->store(true); };
        try {
            first.images(params);
        } catch (const ditedge::api::Failure& failure) {
            if (failure.status() == DITEDGE_CANCELLED) std::puts("cancelled");
        }
    });
    while (!started.load()) std::this_thread::yield();
    first.cancel();
    worker.join();

    for (int i = 4; i < argc; ++i) {
        try {
            const Bundle hostile(argv[i]);
            std::puts("opened");
            Session(hostile, one_thread(argv)).images(request(labels, seeds));
        } catch (const ditedge::api::Failure& failure) {
            if (ditedge_last_error()[0] == '\0') return std::puts("no message"), 1;
            if (failure.status() == DITEDGE_ERROR_BUNDLE) std::puts("refused");
        }
    }
    return 0;
}
