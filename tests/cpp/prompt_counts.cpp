// ditedge-prompt-counts BUNDLE LIBRARY: how often the graphs of prompts run for eight images of three prompts and a negative one,
// in batches of three, as a line of JSON.
#include <cstdio>
#include <map>
#include <string>

#include "engine.hpp"
#include "prompts.hpp"
#include "tables.hpp"
#include "text_graphs.hpp"

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    const ditedge::Bundle bundle = ditedge::open_bundle(argv[1], true, {});
    ditedge::EngineOptions options;
    options.library = argv[2], options.threads = 1;
    std::map<std::string, int> runs;
    std::map<std::string, std::unique_ptr<ditedge::Engine>> engines;
    ditedge::TextGraphs graphs(bundle, [&](const std::string& graph) -> ditedge::Engine& {
        ++runs[graph];  // asked for before each run
        if (engines.count(graph) == 0)
            bundle.with_graph(graph, [&](const ditedge::GraphBytes& bytes) {
                engines[graph] = ditedge::open_ort_engine(bytes, bundle.manifest.graphs.at(graph), options, false);
            });
        return *engines.at(graph);
    });
    const auto negative = ditedge::prompt_of_ids(bundle, {{9, 1}});
    const ditedge::Program program = bundle.program("ddim-10");
    for (std::int64_t first = 0; first < 8; first += 3) {
        std::vector<ditedge::Subject> subjects;
        for (std::int64_t i = first; i < std::min<std::int64_t>(first + 3, 8); ++i)
            subjects.push_back({0, -1, ditedge::prompt_of_ids(bundle, {{4 + i % 3, 5, 1}}), negative, {}, false});
        const ditedge::StepTables tables = ditedge::step_tables(program, bundle.manifest.model, subjects, 3.0);
        graphs.of(tables.prompts, bundle.manifest.latent());
    }
    std::printf("{\"text\": %d, \"context\": %d, \"position\": %d}\n", runs["text"], runs["context"], runs["position"]);
}
