// A bundle on disk: validated, hashed, its programs read. Loads no engine. The rules are runtime/manifest.py's and
// runtime/bundle.py's; keys of later releases inside known objects are ignored, the version number is not.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "program.hpp"

namespace ditedge {

enum class Dtype { float32, int64, uint8 };

struct TensorInfo {
    std::string name;
    Dtype dtype;
    std::vector<std::int64_t> shape;  // -1: dynamic
};

struct GraphInfo {
    std::string file;
    std::vector<TensorInfo> inputs, outputs;
};

struct FileInfo {
    std::string sha256;
    std::int64_t bytes;
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

struct Bundle {
    std::filesystem::path folder;
    Manifest manifest;
    std::string sha256;  // of manifest.json

    std::filesystem::path graph_file(const std::string& graph) const;  // throws Error (request) when there is none
    Program program(const char* name) const;                          // nullptr: the default
    std::int64_t label(const std::string& text) const;
    std::size_t latent_count() const;  // C * H * W
};

// Throws Error (bundle); `place` is only for the message.
Manifest manifest_from_json(const std::string& text, const std::string& place);
Bundle open_bundle(const std::filesystem::path& folder, bool check_hashes);

}  // namespace ditedge
