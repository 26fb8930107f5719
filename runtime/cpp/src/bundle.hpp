// A bundle: validated, every file opened once and hashed in that reading. Loads no engine. The rules are runtime/bundle/manifest.py's and
// runtime/bundle/open.py's; keys of later releases inside known objects are ignored, the version number is not.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "files.hpp"
#include "program.hpp"
#include "signatures.hpp"
#include "tensor_info.hpp"

namespace ditedge {

constexpr std::size_t kMaxManifestBytes = 16 << 20;

struct GraphInfo {
    std::string file;
    std::vector<TensorInfo> inputs, outputs;
    bool float32 = true;  // not 16 bit
};

struct ModelInfo {
    std::int64_t input_size, in_channels, out_channels, num_classes, guided_channels;
    std::optional<std::int64_t> null_class;
};

struct PreviewInfo {
    std::vector<float> weight;  // [colours, C]
    std::vector<float> bias;    // [colours]
    std::int64_t scale;
};

struct ImageSize {
    std::int64_t height = 0, width = 0, channels = 0;
    std::size_t bytes() const { return static_cast<std::size_t>(height * width * channels); }
};

struct Manifest {
    ModelInfo model;
    Process process;
    std::vector<std::string> labels;
    std::map<std::string, GraphInfo> graphs;
    std::map<std::string, std::string> programs;  // name -> file
    std::string default_program;
    double default_guidance;
    std::optional<PreviewInfo> preview;
    std::map<std::string, FileInfo> files;
    std::vector<std::string> program_names, graph_names;  // sorted, for listing
    std::int64_t modulation_width;                        // M
    ImageSize image;                                      // zeros without a decoder
};

// A graph's bytes and those of the files its weights are in: views, valid during `with_graph`.
struct GraphBytes {
    std::string place;
    std::string_view graph;
    std::vector<std::pair<std::string, std::string_view>> external;  // by location, as the graph names it
};

struct Bundle {
    Manifest manifest;
    std::string sha256;                      // of manifest.json
    TrustedKeys trusted;                     // one of them signed it, and has to have signed its plans
    std::shared_ptr<const Folder> folder;    // plans are opened below it
    std::map<std::string, std::string> programs;                     // file -> its text
    std::map<std::string, std::unique_ptr<const OpenFile>> held;     // graphs and the files of their weights
    std::map<std::string, std::map<std::string, std::string>> external;  // graph -> location -> file

    void require_graph(const std::string& graph) const;  // throws Error (request) when there is none
    // Hands over the bytes that were hashed. Throws Error (bundle) when a file was written to since, or during `use`.
    void with_graph(const std::string& graph, const std::function<void(const GraphBytes&)>& use) const;
    Program program(const char* name) const;             // nullptr: the default
    std::int64_t label(const std::string& text) const;
    std::size_t latent_count() const;  // C * H * W
};

// Throws Error (bundle); `place` is only for the message.
Manifest manifest_from_json(const std::string& text, const std::string& place);
// Hashes files in parallel. check_hashes false, and no trusted keys: their sizes are checked, and whoever can write to them
// decides what runs.
Bundle open_bundle(const std::filesystem::path& folder, bool check_hashes, TrustedKeys trusted);

}  // namespace ditedge
