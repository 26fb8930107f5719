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
    bool told_interval = false;  // its conditioner is told how far a step goes
};

struct ImageSize {
    std::int64_t height = 0, width = 0, channels = 0;
    std::size_t bytes() const { return static_cast<std::size_t>(height * width * channels); }
};

// One text encoder: how its prompts are padded, and what the graph `context` reads of what it says.
struct EncoderInfo {
    // A tensor of one prompt, by the name that `context` reads it by: [tokens, numbers], or [numbers] of the whole prompt.
    struct Rows {
        std::string name;
        std::vector<std::int64_t> shape;
        std::string of_text;  // its name as an output of the text encoder
    };
    // suffix: "", "_2", ... of its graph's name and of what it makes; words: tokens that are no padding.
    std::vector<Rows> rows(std::int64_t words) const;
    std::vector<Rows> rows() const { return rows(tokens); }

    std::string suffix;
    std::int64_t tokens = 0;                   // to which prompts are padded
    std::optional<std::int64_t> width, pooled;  // Dh, Dp; none: not read
    std::int64_t pad = 0;                      // token that fills up
    bool masked = true;                        // no: it reads padding as it reads words, and a recorded prompt has its rows
    std::optional<std::int64_t> instruction;   // tokens of that which stands before a prompt's words (Sana); none: there is none
    bool whole = false;                        // of an instruction: its rows are read, too (Lumina 2)

    // Rows after the first that are not read: those of the instruction but its first and its last.
    std::int64_t left_out() const { return instruction && !whole ? *instruction - 2 : 0; }
    // Token ids of a prompt at most, the instruction's among them. negative: of what is guided away from, which has none.
    std::int64_t most(bool negative) const { return negative ? tokens : tokens + left_out(); }
};

// A model that takes prompts instead of classes, and latents of several sizes.
struct TextInfo {
    std::vector<EncoderInfo> encoders;          // one at least
    std::string guidance = "true";              // a second evaluation; "embedded": a number that the network is told; "none"
    std::optional<std::string> encoder_sha256;  // of what recorded prompts are of; none: any
    std::optional<std::string> empty;           // file: the recorded prompt of no words
    std::int64_t multiple = 0, largest = 0, factor = 0;  // of H and W; pixels of a picture per pixel of a latent

    std::int64_t patches(const Size& latent) const { return (latent.height / multiple) * (latent.width / multiple); }
    std::int64_t most_tokens() const;  // of the text encoder that reads most
};

struct Manifest {
    ModelInfo model;
    std::optional<TextInfo> text;  // none: the model takes classes
    Process process;
    std::vector<std::string> labels;
    std::map<std::string, GraphInfo> graphs;
    std::map<std::string, std::string> programs;  // name -> file
    std::string default_program;
    std::map<std::int64_t, std::string> by_tokens;  // number of image tokens -> program, where steps depend on the picture's size
    double default_guidance;
    std::map<std::string, FileInfo> files;
    std::vector<std::string> program_names, graph_names;  // sorted, for listing
    std::int64_t modulation_width;                        // M
    ImageSize image, preview;                             // of input_size; zeros without a decoder, without the graph `preview`

    Size latent() const { return {model.input_size, model.input_size}; }  // of training
    // The output of a graph that the bundle has, or null.
    const TensorInfo* output(const std::string& graph, const char* name) const;
    bool told(const char* name) const;  // whether the conditioner has an input of that name
    bool tells_guidance() const { return !text && told("guidance"); }  // a model of classes; of prompts `text` says it
    // What "decoder" or "preview" makes of a latent.
    ImageSize picture_size(const std::string& graph, const Size& of_latent) const;
};

// Whether a graph of this name may have a plan.
bool has_plan(const std::string& graph);

// Throws Error (bundle); `place` is only for the message.
Manifest manifest_from_json(const std::string& text, const std::string& place);

}  // namespace ditedge
