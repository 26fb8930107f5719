// ditedge-bench: milliseconds a step (median of --repeats runs after one to warm up) and peak memory.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>

#include "arguments.hpp"
#include "ditedge.hpp"

namespace {

const char kUsage[] =
    "usage: ditedge-bench --bundle FOLDER [--program NAME] [--batch 1] [--repeats 5] [--threads 0]\n"
    "                     [--engine onnxruntime|tensorrt|tensorrt-rtx] [--provider cpu] [--library PATH] [--no-cuda-graph]\n"
    "example: ditedge-bench --bundle build/demo/fashion --program ddim-25 --batch 4\n";

void run(const Arguments& arguments) {
    if (arguments.text("--bundle").empty()) throw std::invalid_argument("--bundle is needed");
    const ditedge::api::Bundle bundle(arguments.text("--bundle"));
    ditedge_session_options options = ditedge::api::default_options();
    options.engine = arguments.text_or_null("--engine");
    options.provider = arguments.text_or_null("--provider");
    options.library = arguments.text_or_null("--library");
    options.no_cuda_graph = arguments.on("--no-cuda-graph");
    options.threads = static_cast<std::int32_t>(arguments.whole("--threads", INT32_MAX));
    ditedge::api::Session session(bundle, options);
    const std::vector<std::int64_t> labels(static_cast<std::size_t>(arguments.whole("--batch", 4096)), 0);
    const std::vector<std::uint64_t> seeds(labels.size(), 0);
    ditedge_params params = ditedge::api::default_params();
    params.count = params.batch = static_cast<std::int64_t>(labels.size());
    params.labels = labels.data(), params.seeds = seeds.data();
    params.program = arguments.text_or_null("--program");
    std::vector<double> milliseconds;
    for (unsigned long long repeat = 0; repeat <= arguments.whole("--repeats", 1'000'000); ++repeat) {
        const auto start = std::chrono::steady_clock::now();
        session.latents(params);
        const std::chrono::duration<double, std::milli> taken = std::chrono::steady_clock::now() - start;
        if (repeat > 0) milliseconds.push_back(taken.count() / static_cast<double>(bundle.steps(params.program)));
    }
    if (milliseconds.empty()) throw std::invalid_argument("--repeats is not at least 1");
    std::sort(milliseconds.begin(), milliseconds.end());
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    std::printf("{\"ms_per_step\": %.4f, \"fastest_ms_per_step\": %.4f, \"peak_mib\": %.1f}\n",
                milliseconds[milliseconds.size() / 2], milliseconds[0], static_cast<double>(usage.ru_maxrss) / 1024.0);
}

}  // namespace

int main(int argc, char** argv) {
    if (Arguments::ask_for_help(argc, argv)) return std::cout << kUsage, 0;
    try {
        run(Arguments(argc, argv, {{"--bundle", ""}, {"--program", ""}, {"--batch", "1"}, {"--repeats", "5"},
                                   {"--engine", ""}, {"--provider", "cpu"}, {"--library", ""}, {"--no-cuda-graph", "off"}, {"--threads", "0"}}));
    } catch (const std::exception& error) {
        std::cerr << "error: " << printable(error.what()) << '\n' << kUsage;
        return 2;
    }
    return 0;
}
