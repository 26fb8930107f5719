// manifest.json as far as this library uses it (docs/format.md, "Reading rules"): what it has no use for is not looked at, so that a
// later release's names there do not stop it. The rules for what both use are runtime/bundle/manifest.py's.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "files.hpp"
#include "process.hpp"
#include "tensor_info.hpp"

namespace ditedge {

constexpr std::size_t kMaxManifestBytes = 16 << 20, kMaxFiles = 1000, kMaxGraphs = 16;

struct GraphInfo {
    std::string file;
    std::vector<TensorInfo> inputs, outputs;
    bool float32 = true;  // not 16 bit
};

// H and W of a latent, or of a picture.
struct Size {
    std::int64_t height = 0, width = 0;
    bool operator==(const Size& other) const { return height == other.height && width == other.width; }
    bool operator<(const Size& other) const { return height != other.height ? height < other.height : width < other.width; }
};

struct ModelInfo {
    std::int64_t input_size, in_channels, out_channels, num_classes, guided_channels;
    std::optional<std::int64_t> null_class;
};

struct ImageSize {
    std::int64_t height = 0, width = 0, channels = 0;
    std::size_t bytes() const { return static_cast<std::size_t>(height * width * channels); }
};

// A model that takes prompts instead of classes, and latents of several sizes.
struct TextInfo {
    std::int64_t tokens, width;                          // T, to which prompts are padded; Dh
    std::int64_t pad;                                    // token that fills up
    std::optional<std::string> encoder_sha256;           // of what recorded prompts are of; none: any
    std::optional<std::string> empty;                    // file: the recorded prompt of no words
    std::int64_t multiple, largest, factor;              // of H and W; pixels of a picture per pixel of a latent
};

struct Manifest {
    ModelInfo model;
    std::optional<TextInfo> text;  // none: the model takes classes
    Process process;
    std::vector<std::string> labels;
    std::map<std::string, GraphInfo> graphs;
    std::map<std::string, std::string> programs;  // name -> file
    std::string default_program;
    double default_guidance;
    std::map<std::string, FileInfo> files;
    std::vector<std::string> program_names, graph_names;  // sorted, for listing
    std::int64_t modulation_width;                        // M
    ImageSize image, preview;                             // of input_size; zeros without a decoder, without the graph `preview`

    Size latent() const { return {model.input_size, model.input_size}; }  // of training
    // What "decoder" or "preview" makes of a latent.
    ImageSize picture_size(const std::string& graph, const Size& of_latent) const;
};

// Whether a graph of this name may have a plan.
bool has_plan(const std::string& graph);

// Throws Error (bundle); `place` is only for the message.
Manifest manifest_from_json(const std::string& text, const std::string& place);

}  // namespace ditedge
