#include "prompts.hpp"

#include <fcntl.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "json.hpp"
#include "sha256.hpp"

namespace ditedge {
namespace {

constexpr std::size_t kMaxHeader = 16 << 20;  // of a .safetensors file: names, shapes and the prompt's text
constexpr const char* kFormat = "ditedge-prompt";

[[noreturn]] void fail_no_prompt(const std::string& place) { fail_request(place + ": not a recorded prompt of `ditedge encode`"); }

// A little-endian number of 8 bytes, the header as JSON, then the numbers of all tensors.
struct Safetensors {
    Json header;
    std::string_view data;
};

Safetensors read_safetensors(std::string_view bytes, const std::string& place) {
    std::uint64_t size = 0;
    if (bytes.size() < 8) fail_no_prompt(place);
    for (int i = 7; i >= 0; --i) size = size << 8 | static_cast<unsigned char>(bytes[static_cast<std::size_t>(i)]);
    if (size > kMaxHeader || size > bytes.size() - 8) fail_no_prompt(place);
    const auto header = static_cast<std::size_t>(size);
    return {parse_json(std::string(bytes.substr(8, header)), place, DITEDGE_ERROR_REQUEST), bytes.substr(8 + header)};
}

// The prompt's entry of the header's metadata, a JSON object of texts.
Json read_said(const Field& header, const std::string& place) {
    if (!header.json().is_object() || !header.has("__metadata__")) fail_no_prompt(place);
    const Field metadata = header.at("__metadata__");
    if (!metadata.json().is_object() || !metadata.has(kFormat)) fail_no_prompt(place);
    Json said = parse_json(metadata.at(kFormat).text(), place, DITEDGE_ERROR_REQUEST);
    if (!said.is_object() || !said.contains("version") || said["version"] != "1") fail_no_prompt(place);
    return said;
}

std::string text_in(const Json& said, const char* key) {
    return said.contains(key) && said[key].is_string() ? said[key].get<std::string>() : "";
}

void check_encoder(const Json& said, const TextInfo& text, const std::string& place) {
    const std::string theirs = text_in(said, "encoder_sha256");
    if (!text.encoder_sha256 || theirs == *text.encoder_sha256) return;
    fail_request(place + " was recorded with another text encoder (sha256 " + theirs.substr(0, 12) + "...), this bundle's is " +
                 text.encoder_sha256->substr(0, 12) + "...: record it with this bundle's");
}

[[noreturn]] void fail_numbers(const std::string& place) { fail_request(place + ": a recorded prompt is [tokens, width] finite float32 numbers"); }

void check_tokens(std::int64_t tokens, std::int64_t most, const std::string& place) {
    if (tokens > most) fail_request(place + "a prompt has " + std::to_string(tokens) + " tokens, the model reads " + std::to_string(most));
}

void check_ids(const TextInfo& text, const std::vector<std::vector<std::int64_t>>& ids, bool negative) {
    for (std::size_t i = 0; i < ids.size(); ++i) check_tokens(static_cast<std::int64_t>(ids[i].size()), text.encoders[i].most(negative), "");
}

// Whether the sizes of a tensor are those of what a model reads.
void check_shape(const std::vector<std::int64_t>& shape, const EncoderInfo::Rows& wanted, const EncoderInfo& encoder, const std::string& place) {
    if (shape.back() != wanted.shape.back())
        fail_request(place + ": a recorded prompt has rows of " + std::to_string(shape.back()) + " numbers, the model reads " +
                     std::to_string(wanted.shape.back()) + ": record it with this model's text encoder");
    if (shape.size() == 2) check_tokens(shape[0], encoder.tokens, place + ": ");
    if (!encoder.masked && shape != wanted.shape)
        fail_request(place + ": a recorded prompt has " + std::to_string(shape[0]) + " rows of '" + wanted.name + "', the model reads " +
                     std::to_string(wanted.shape[0]) + " with padding: record it with this model's text encoder");
}

// A tensor of finite float32. Its sizes are compared with the file's before memory is taken.
std::vector<float> read_rows(const Safetensors& file, const Field& header, const EncoderInfo::Rows& wanted, const EncoderInfo& encoder,
                             const std::string& place) {
    if (!header.has(wanted.name.c_str())) fail_no_prompt(place);
    const Field tensor = header.at(wanted.name);
    const std::vector<Field> sizes = tensor.at("shape").elements(8), ends = tensor.at("data_offsets").elements(2);
    if (tensor.at("dtype").text() != "F32" || sizes.size() != wanted.shape.size() || ends.size() != 2) fail_numbers(place);
    const auto whole = static_cast<std::int64_t>(file.data.size());
    const std::int64_t begin = ends[0].integer(0, whole), end = ends[1].integer(begin, whole);
    std::vector<std::int64_t> shape;
    std::int64_t left = (end - begin) / 4;  // numbers, divided by each size in turn
    for (const Field& size : sizes) {
        shape.push_back(size.integer(0, INT64_MAX));
        if (shape.back() < 1) fail_numbers(place);
        if (left % shape.back() != 0) fail_no_prompt(place);
        left /= shape.back();
    }
    if (left != 1 || (end - begin) % 4 != 0) fail_no_prompt(place);
    check_shape(shape, wanted, encoder, place);
    std::vector<float> rows(static_cast<std::size_t>((end - begin) / 4));
    std::memcpy(rows.data(), file.data.data() + begin, static_cast<std::size_t>(end - begin));
    if (!std::all_of(rows.begin(), rows.end(), [](float number) { return std::isfinite(number); })) fail_numbers(place);
    return rows;
}

// Two prompts are one where these are.
template <class Number>
std::string key_of(const std::string& name, const std::vector<Number>& numbers) {
    return sha256_of(name + std::string(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(Number)));
}

}  // namespace

const TextInfo& text_of(const Bundle& bundle) {
    if (!bundle.manifest.text)
        fail_request(bundle.folder->path.string() + " takes classes, and no prompts: leave prompts and sizes out");
    return *bundle.manifest.text;
}

PromptPointer prompt_of_ids(const Bundle& bundle, std::vector<std::vector<std::int64_t>> ids) {
    const TextInfo& text = text_of(bundle);
    Prompt prompt;
    for (const std::vector<std::int64_t>& own : ids) {
        if (own.empty() || !std::all_of(own.begin(), own.end(), [](std::int64_t id) { return id >= 0 && id <= INT32_MAX; }))
            fail_request("a prompt's token ids are whole numbers from 0, and at least one");
        prompt.key += key_of("ids", own);
    }
    if (bundle.manifest.graphs.count("text") == 0)
        fail_request(bundle.folder->path.string() + " has no text encoder: give prompts that `ditedge encode` recorded with one that has");
    if (ids.size() != text.encoders.size())
        fail_request("a prompt's token ids are " + std::to_string(ids.size()) + " list(s), the model has " +
                     std::to_string(text.encoders.size()) + " text encoder(s): give a list for each");
    check_ids(text, ids, false);
    prompt.ids = std::move(ids);
    return std::make_shared<const Prompt>(std::move(prompt));
}

PromptPointer guided_away(const Bundle& bundle, const PromptPointer& prompt) {
    const TextInfo& text = text_of(bundle);
    const auto instructs = [](const EncoderInfo& encoder) { return encoder.instruction.has_value(); };
    if (prompt->ids.empty() || std::none_of(text.encoders.begin(), text.encoders.end(), instructs)) return prompt;
    check_ids(text, prompt->ids, true);
    Prompt bare = *prompt;
    bare.key += "negative", bare.negative = true;
    return std::make_shared<const Prompt>(std::move(bare));
}

Prompt recorded_prompt(std::string_view bytes, const TextInfo& text, const std::string& place) {
    const Safetensors file = read_safetensors(bytes, place);
    const Field header(file.header, place, DITEDGE_ERROR_REQUEST);
    check_encoder(read_said(header, place), text, place);
    Prompt prompt;
    for (const EncoderInfo& encoder : text.encoders)
        for (const EncoderInfo::Rows& wanted : encoder.rows()) {
            std::vector<float> rows = read_rows(file, header, wanted, encoder, place);
            prompt.key += key_of(wanted.name, rows);
            prompt.rows[wanted.name] = std::move(rows);
        }
    return prompt;
}

PromptPointer read_prompt(const Bundle& bundle, const std::string& path) {
    const TextInfo& text = text_of(bundle);
    return std::make_shared<const Prompt>(recorded_prompt(read_text(AT_FDCWD, path, path, kMaxPromptBytes, DITEDGE_ERROR_REQUEST), text, path));
}

PromptPointer no_words(const Bundle& bundle) {
    const TextInfo& text = text_of(bundle);
    if (!text.empty)
        fail_request(bundle.folder->path.string() + " has no recorded prompt of no words to guide away from: give a negative prompt, or guidance 1");
    const std::string place = (bundle.folder->path / *text.empty).string();
    if (bundle.manifest.files.at(*text.empty).bytes > static_cast<std::int64_t>(kMaxPromptBytes))
        fail_bundle(place + ": larger than 256 MB, not a recorded prompt");
    try {
        return std::make_shared<const Prompt>(recorded_prompt(bundle.recorded_empty(), text, place));
    } catch (const Error& error) {
        if (error.status() != DITEDGE_ERROR_REQUEST) throw;
        fail_bundle(error.what());
    }
}

}  // namespace ditedge
