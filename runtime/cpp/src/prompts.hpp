// Prompts: what a text encoder is given, or what it said, recorded in a file that stands in for it (runtime/loop/prompts.py).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bundle.hpp"

namespace ditedge {

constexpr std::size_t kMaxPromptBytes = 256 << 20;  // of a recorded prompt

// By its tokens, or by what the text encoders made of them.
struct Prompt {
    std::string key;                             // two prompts with the same one are the same
    std::vector<std::vector<std::int64_t>> ids;  // the tokens, of each text encoder; empty: recorded
    bool negative = false;                       // of ids: no instruction stands before them, where the model has one
    // By the name that the graph `context` reads it by: hidden [n, Dh], a row a token; pooled [Dp]; hidden_2 of the second ...
    std::map<std::string, std::vector<float>> rows;
};

using PromptPointer = std::shared_ptr<const Prompt>;

// Throws Error (request) for a model that takes classes.
const TextInfo& text_of(const Bundle& bundle);

// Each throws Error (request) for what the bundle cannot read.
PromptPointer prompt_of_ids(const Bundle& bundle, std::vector<std::vector<std::int64_t>> ids);  // of each text encoder
// The prompt as one to guide away from: of ids, without an instruction before them.
PromptPointer guided_away(const Bundle& bundle, const PromptPointer& prompt);
PromptPointer read_prompt(const Bundle& bundle, const std::string& path);  // of the bundle's own text encoder
PromptPointer no_words(const Bundle& bundle);                              // the bundle's recorded prompt of no words

// A recorded prompt, a .safetensors file of `ditedge encode`. Throws Error (request); `place` is only for the message.
Prompt recorded_prompt(std::string_view bytes, const TextInfo& text, const std::string& place);

}  // namespace ditedge
