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

// The numbers of tensor `name`, [n, width] float32. Its sizes are compared with the file's before memory is taken.
std::vector<float> read_rows(const Safetensors& file, const Field& header, const char* name, std::int64_t width, const std::string& place) {
    if (!header.has(name)) fail_no_prompt(place);
    const Field tensor = header.at(name);
    const std::vector<Field> shape = tensor.at("shape").elements(8), ends = tensor.at("data_offsets").elements(2);
    const std::string numbers = place + ": a recorded prompt is [tokens, width] finite float32 numbers";
    if (tensor.at("dtype").text() != "F32" || shape.size() != 2 || ends.size() != 2) fail_request(numbers);
    const std::int64_t n = shape[0].integer(0, INT64_MAX), has = shape[1].integer(0, INT64_MAX);
    const auto size = static_cast<std::int64_t>(file.data.size());
    const std::int64_t begin = ends[0].integer(0, size), end = ends[1].integer(begin, size), bytes = end - begin;
    if (n < 1 || has < 1) fail_request(numbers);
    if (bytes % 4 != 0 || (bytes / 4) % has != 0 || bytes / 4 / has != n) fail_no_prompt(place);
    if (has != width)
        fail_request(place + ": a recorded prompt has rows of " + std::to_string(has) + " numbers, the model reads " + std::to_string(width) +
                     ": record it with this model's text encoder");
    std::vector<float> rows(static_cast<std::size_t>(bytes / 4));
    std::memcpy(rows.data(), file.data.data() + begin, static_cast<std::size_t>(bytes));
    if (!std::all_of(rows.begin(), rows.end(), [](float number) { return std::isfinite(number); })) fail_request(numbers);
    return rows;
}

void check_tokens(std::int64_t tokens, const TextInfo& text, const std::string& place) {
    if (tokens > text.tokens)
        fail_request(place + "a prompt has " + std::to_string(tokens) + " tokens, the model reads " + std::to_string(text.tokens));
}

template <class Number>
std::string key_of(const char* kind, const std::vector<Number>& numbers) {
    return sha256_of(kind + std::string(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(Number)));
}

}  // namespace

const TextInfo& text_of(const Bundle& bundle) {
    if (!bundle.manifest.text)
        fail_request(bundle.folder->path.string() + " takes classes, and no prompts: leave prompts and sizes out");
    return *bundle.manifest.text;
}

PromptPointer prompt_of_ids(const Bundle& bundle, std::vector<std::int64_t> ids) {
    const TextInfo& text = text_of(bundle);
    if (ids.empty() || !std::all_of(ids.begin(), ids.end(), [](std::int64_t id) { return id >= 0 && id <= INT32_MAX; }))
        fail_request("a prompt's token ids are whole numbers from 0, and at least one");
    if (bundle.manifest.graphs.count("text") == 0)
        fail_request(bundle.folder->path.string() + " has no text encoder: give prompts that `ditedge encode` recorded with one that has");
    const auto tokens = static_cast<std::int64_t>(ids.size());
    check_tokens(tokens, text, "");
    std::string key = key_of("ids", ids);
    return std::make_shared<const Prompt>(Prompt{std::move(key), "", std::move(ids), {}, tokens});
}

Prompt recorded_prompt(std::string_view bytes, const TextInfo& text, const std::string& place) {
    const Safetensors file = read_safetensors(bytes, place);
    const Field header(file.header, place, DITEDGE_ERROR_REQUEST);
    const Json said = read_said(header, place);
    check_encoder(said, text, place);
    std::vector<float> hidden = read_rows(file, header, "hidden", text.width, place);
    const std::int64_t tokens = static_cast<std::int64_t>(hidden.size()) / text.width;
    check_tokens(tokens, text, place + ": ");
    std::string key = key_of("rows", hidden);
    return {std::move(key), text_in(said, "text"), {}, std::move(hidden), tokens};
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
