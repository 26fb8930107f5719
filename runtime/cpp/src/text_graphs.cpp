#include "text_graphs.hpp"

#include <cmath>
#include <deque>
#include <iterator>
#include <numeric>
#include <string_view>

#include "error.hpp"

namespace ditedge {
namespace {

constexpr std::size_t kContextBytes = 1 << 30;  // of prompts that were used before, kept for later batches
constexpr std::size_t kSizes = 16;              // whose positions are kept

std::size_t numbers_of(const std::vector<std::int64_t>& shape) {
    return static_cast<std::size_t>(std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>()));
}

std::size_t bytes_of(const std::vector<std::vector<float>>& arrays) {
    std::size_t numbers = 0;
    for (const std::vector<float>& array : arrays) numbers += array.size();
    return numbers * sizeof(float);
}

std::vector<std::int64_t> mask_of(std::int64_t length, std::int64_t tokens) {
    std::vector<std::int64_t> mask(static_cast<std::size_t>(tokens), 0);
    std::fill_n(mask.begin(), length, 1);
    return mask;
}

// With the first size, of one prompt.
std::vector<std::int64_t> of_one(const std::vector<std::int64_t>& shape) {
    std::vector<std::int64_t> all = {1};
    all.insert(all.end(), shape.begin(), shape.end());
    return all;
}

// Rows of an instruction, all but its first and its last.
void leave_out(const EncoderInfo& encoder, const std::vector<std::int64_t>& shape, std::vector<float>& rows) {
    const std::int64_t first = std::min<std::int64_t>(1, shape[0]), last = std::min(shape[0], first + encoder.left_out());
    rows.erase(rows.begin() + static_cast<std::ptrdiff_t>(first * shape[1]), rows.begin() + static_cast<std::ptrdiff_t>(last * shape[1]));
}

}  // namespace

const Tensor* OfPrompts::vector() const {
    const auto found = std::find_if(tensors.begin(), tensors.end(), [](const Tensor& tensor) { return std::string_view(tensor.name) == "vector"; });
    return found != tensors.end() ? &*found : nullptr;
}

void OfPrompts::add_vectors(const Conditions& conditions, std::vector<float>& vectors) const {
    const Tensor* const found = vector();
    if (found != nullptr) append_vectors(conditions, static_cast<const float*>(found->data), found->shape[1], vectors);
}

std::vector<Tensor> OfPrompts::of_step() const {
    std::vector<Tensor> read;
    std::copy_if(tensors.begin(), tensors.end(), std::back_inserter(read), [&](const Tensor& tensor) { return &tensor != vector(); });
    return read;
}

Engine& TextEncoders::engine(const std::string& graph) {
    std::unique_ptr<Engine>& encoder = loaded_[graph];
    if (encoder == nullptr) {
        if (bundle_.manifest.graphs.count(graph) == 0) fail_request("the bundle has no graph " + graph + ": give recorded prompts");
        bundle_.with_graph(graph, [&](const GraphBytes& bytes) { encoder = open_ort_engine(bytes, bundle_.manifest.graphs.at(graph), options_, false); });
        now_.at(loaded_.size() - 1).store(encoder.get());
        if (cancelled_.load()) encoder->interrupt(true);
    }
    return *encoder;
}

TextGraphs::TextGraphs(const Bundle& bundle, std::function<Engine&(const std::string&)> engine) : bundle_(bundle), engine_(std::move(engine)) {}

std::vector<std::int64_t> TextGraphs::shape_of(const TensorInfo& output, std::initializer_list<std::int64_t> open) {
    std::vector<std::int64_t> shape = output.shape;
    auto next = open.begin();
    for (std::int64_t& size : shape)
        if (size < 0 && next != open.end()) size = *next++;
    return shape;
}

OfPrompts TextGraphs::of(const std::vector<PromptPointer>& prompts, const Size& latent) {
    if (prompts.empty()) return {};
    const std::vector<TensorInfo>& outputs = bundle_.manifest.graphs.at("context").outputs;
    OfPrompts all{together(prompts), {}};
    for (std::size_t i = 0; i < outputs.size(); ++i)
        all.tensors.push_back(view(outputs[i].name.c_str(), (*all.numbers)[i].data(),
                                   shape_of(outputs[i], {static_cast<std::int64_t>(prompts.size()), bundle_.manifest.text->encoders[0].tokens})));
    if (bundle_.manifest.graphs.count("position") != 0) all.tensors.push_back(position_of(latent));
    return all;
}

std::shared_ptr<const std::vector<std::vector<float>>> TextGraphs::together(const std::vector<PromptPointer>& prompts) {
    std::vector<std::string> keys;
    for (const PromptPointer& prompt : prompts) keys.push_back(prompt->key);
    const auto found = std::find_if(batches_.begin(), batches_.end(), [&](const auto& batch) { return batch.first == keys; });
    if (found != batches_.end()) {
        batches_.splice(batches_.end(), batches_, found);
        return batches_.back().second;
    }
    std::vector<std::vector<float>> all(bundle_.manifest.graphs.at("context").outputs.size());
    for (const PromptPointer& prompt : prompts) {
        const Made& made = made_of(*prompt);
        for (std::size_t i = 0; i < all.size(); ++i) all[i].insert(all[i].end(), made.outputs[i].begin(), made.outputs[i].end());
    }
    forget(prompts);
    batches_.emplace_back(std::move(keys), std::make_shared<const std::vector<std::vector<float>>>(std::move(all)));
    std::size_t bytes = 0;
    for (const auto& batch : batches_) bytes += bytes_of(*batch.second);
    while (bytes > kContextBytes && batches_.size() > 1) {
        bytes -= bytes_of(*batches_.front().second);
        batches_.pop_front();
    }
    return batches_.back().second;
}

const TextGraphs::Made& TextGraphs::made_of(const Prompt& prompt) {
    const auto found = std::find_if(made_.begin(), made_.end(), [&](const Made& made) { return made.key == prompt.key; });
    if (found != made_.end()) {
        made_.splice(made_.end(), made_, found);
        return made_.back();
    }
    const TextInfo& text = *bundle_.manifest.text;
    std::map<std::string, std::vector<float>> rows = rows_of(prompt);
    std::deque<std::pair<std::string, std::vector<std::int64_t>>> masks;  // whose places stay
    std::vector<Tensor> inputs, outputs;
    for (const EncoderInfo& encoder : text.encoders)
        for (const EncoderInfo::Rows& read : encoder.rows()) {
            std::vector<float>& own = rows.at(read.name);
            if (encoder.masked && read.shape.size() == 2) {
                masks.emplace_back("mask" + encoder.suffix, mask_of(static_cast<std::int64_t>(own.size()) / read.shape[1], encoder.tokens));
                inputs.push_back(view(masks.back().first.c_str(), masks.back().second.data(), {1, encoder.tokens}));
            }
            own.resize(numbers_of(read.shape), 0.0f);
            inputs.push_back(view(rows.find(read.name)->first.c_str(), own.data(), of_one(read.shape)));
        }
    Made made{prompt.key, {}};
    for (const TensorInfo& output : bundle_.manifest.graphs.at("context").outputs) {
        const std::vector<std::int64_t> shape = shape_of(output, {1, text.encoders[0].tokens});
        made.outputs.emplace_back(numbers_of(shape));
        outputs.push_back(view(output.name.c_str(), made.outputs.back().data(), shape));
    }
    engine_("context").run(inputs, outputs);
    made_.push_back(std::move(made));
    return made_.back();
}

std::map<std::string, std::vector<float>> TextGraphs::rows_of(const Prompt& prompt) {
    if (prompt.ids.empty()) return prompt.rows;
    const TextInfo& text = *bundle_.manifest.text;
    std::map<std::string, std::vector<float>> rows;
    for (std::size_t i = 0; i < text.encoders.size(); ++i) {
        const EncoderInfo& encoder = text.encoders[i];
        const std::int64_t words = static_cast<std::int64_t>(prompt.ids[i].size()), most = encoder.most(prompt.negative);
        std::vector<std::int64_t> ids = prompt.ids[i];
        ids.resize(static_cast<std::size_t>(most), encoder.pad);
        const std::vector<std::int64_t> mask = mask_of(words, most);
        std::vector<EncoderInfo::Rows> made = encoder.rows();
        const std::vector<EncoderInfo::Rows> wanted = encoder.rows(words);
        for (EncoderInfo::Rows& output : made)
            if (output.shape.size() == 2) output.shape[0] = most;
        std::vector<Tensor> outputs;
        for (const EncoderInfo::Rows& output : made) {
            std::vector<float>& own = rows[output.name] = std::vector<float>(numbers_of(output.shape));
            outputs.push_back(view(output.of_text.c_str(), own.data(), of_one(output.shape)));
        }
        engine_("text" + encoder.suffix).run({view("ids", ids.data(), {1, most}), view("mask", mask.data(), {1, most})}, outputs);
        for (const EncoderInfo::Rows& output : wanted) {
            rows[output.name].resize(numbers_of(output.shape));
            for (const float number : rows[output.name])
                if (!std::isfinite(number)) fail_request("the text encoder overflowed on a prompt of " + std::to_string(words) + " tokens: say it in other words");
            if (!prompt.negative && output.shape.size() == 2) leave_out(encoder, output.shape, rows[output.name]);
        }
    }
    return rows;
}

// Those that were used longest ago, where they are too many; none of those `used` now, which are the last.
void TextGraphs::forget(const std::vector<PromptPointer>& used) {
    std::size_t bytes = 0;
    for (const Made& made : made_) bytes += bytes_of(made.outputs);
    while (bytes > kContextBytes && made_.size() > used.size()) {
        bytes -= bytes_of(made_.front().outputs);
        made_.pop_front();
    }
}

Tensor TextGraphs::position_of(const Size& latent) {
    const TensorInfo& output = bundle_.manifest.graphs.at("position").outputs[0];
    const std::int64_t patch = bundle_.manifest.text->multiple, h = latent.height / patch, w = latent.width / patch;
    const std::vector<std::int64_t> shape = shape_of(output, {h, w});
    const auto found = std::find_if(positions_.begin(), positions_.end(), [&](const auto& known) { return known.first == latent; });
    if (found != positions_.end()) {
        positions_.splice(positions_.end(), positions_, found);
    } else {
        std::vector<float> row(static_cast<std::size_t>(h)), column(static_cast<std::size_t>(w)), position(numbers_of(shape));
        std::iota(row.begin(), row.end(), 0.0f);
        std::iota(column.begin(), column.end(), 0.0f);
        engine_("position").run({view("row", row.data(), {h}), view("column", column.data(), {w})}, {view(output.name.c_str(), position.data(), shape)});
        if (positions_.size() == kSizes) positions_.pop_front();
        positions_.emplace_back(latent, std::move(position));
    }
    return view(output.name.c_str(), positions_.back().second.data(), shape);
}

}  // namespace ditedge
