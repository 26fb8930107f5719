#include "manifest.hpp"

#include <algorithm>
#include <set>

#include "json.hpp"
#include "program.hpp"

namespace ditedge {
namespace {

// The bounds of docs/format.md, "Limits": the same as runtime/bundle/manifest.py's.
constexpr std::int64_t kHuge = INT64_MAX, kMaxSide = 1 << 16, kMaxClasses = 1'000'000, kMaxWidth = 1 << 24;
constexpr std::int64_t kMaxLatent = 1 << 26, kMaxPixels = 1 << 28;  // numbers of one image: above is no image
constexpr std::int64_t kVersion = 2;
constexpr std::size_t kMaxPrograms = 1000, kMaxRequired = 100;
constexpr std::int64_t kMaxTokens = 1 << 12, kMaxTextWidth = 1 << 16, kMaxFactor = 1024;
constexpr std::size_t kMaxEncoders = 4;

// What this library understands of `requires`: the same names as UNDERSTOOD in runtime/bundle/manifest.py, where it stands when
// one is added.
const std::set<std::string>& understood() {
    static const std::set<std::string> names = {"text", "instruction"};
    return names;
}

std::string version_of_library() {
    return std::to_string(DITEDGE_VERSION_MAJOR) + "." + std::to_string(DITEDGE_VERSION_MINOR) + "." + std::to_string(DITEDGE_VERSION_PATCH);
}

void check_version(const Field& version) {
    if (version.json().is_number_integer() && version.json() == kVersion) return;
    const bool newer = version.json().is_number_integer() && version.json() > kVersion;
    version.fail("this library reads bundle version " + std::to_string(kVersion) + ": " + (newer ? "update ditedge" : "export the checkpoint again"));
}

// Before anything else is looked at: its sentence says more than one about a field.
void check_requires(const Field& names) {
    std::string unknown;
    for (const Field& name : names.elements(kMaxRequired))
        if (understood().count(name.text()) == 0) unknown += (unknown.empty() ? "'" : ", '") + name.text() + "'";
    if (!unknown.empty())
        names.fail("the bundle requires " + unknown + ", which libditedge " + version_of_library() + " does not know: update ditedge");
}

TensorInfo read_tensor(const Field& field) {
    TensorInfo tensor;
    tensor.name = field.at("name").text();
    const std::string dtype = field.at("dtype").one_of({"float32", "int64", "uint8"});
    tensor.dtype = dtype == "float32" ? Dtype::float32 : dtype == "int64" ? Dtype::int64 : Dtype::uint8;
    for (const Field& dimension : field.at("shape").elements(kMaxRank))
        tensor.shape.push_back(dimension.json().is_string() ? -1 : dimension.integer(1, kHuge));
    return tensor;
}

GraphInfo read_graph(const Field& field) {
    GraphInfo graph{field.at("file").text(), {}, {}, true};
    if (field.has("precision")) graph.float32 = field.at("precision").text() == "float32";
    for (const Field& tensor : field.at("inputs").elements(kMaxTensors)) graph.inputs.push_back(read_tensor(tensor));
    for (const Field& tensor : field.at("outputs").elements(kMaxTensors)) graph.outputs.push_back(read_tensor(tensor));
    return graph;
}

ModelInfo read_model(const Field& field) {
    ModelInfo model{};
    model.input_size = field.at("input_size").integer(1, kMaxSide);
    model.in_channels = field.at("in_channels").integer(1, kMaxSide);
    model.out_channels = field.at("out_channels").integer(1, 2 * kMaxSide);
    model.num_classes = field.at("num_classes").integer(0, kMaxClasses);
    model.guided_channels = field.at("guided_channels").integer(1, kHuge);
    const Field null_class = field.at("null_class");
    if (!null_class.null()) model.null_class = null_class.integer(0, kMaxClasses);
    if (model.input_size * model.input_size > kMaxLatent / model.in_channels) field.fail("latents are too large");
    return model;
}

std::optional<std::string> optional_text(const Field& field, const char* key) {
    if (!field.has(key) || field.at(key).null()) return std::nullopt;
    return field.at(key).text();
}

std::optional<std::int64_t> optional_width(const Field& field) {
    if (field.null()) return std::nullopt;
    return field.integer(1, kMaxTextWidth);
}

EncoderInfo read_encoder(const Field& field, std::size_t index) {
    EncoderInfo encoder;
    encoder.suffix = index == 0 ? "" : "_" + std::to_string(index + 1);
    encoder.tokens = field.at("tokens").integer(1, kMaxTokens);
    encoder.width = optional_width(field.at("width"));
    if (field.has("pooled")) encoder.pooled = optional_width(field.at("pooled"));
    if (field.has("pad")) encoder.pad = field.at("pad").integer(0, kHuge);
    if (field.has("masked")) encoder.masked = field.at("masked").boolean();
    if (field.has("instruction") && !field.at("instruction").null()) {
        const Field instruction = field.at("instruction");
        encoder.instruction = instruction.at("tokens").integer(2, kMaxTokens);
        encoder.whole = instruction.has("whole") && instruction.at("whole").boolean();
    }
    return encoder;
}

TextInfo read_text_info(const Field& field) {
    TextInfo text;
    text.encoders.push_back(read_encoder(field, 0));
    if (field.has("further"))
        for (const Field& further : field.at("further").elements(kMaxEncoders - 1)) text.encoders.push_back(read_encoder(further, text.encoders.size()));
    if (field.has("guidance")) text.guidance = field.at("guidance").one_of({"true", "embedded", "none"});
    const Field encoder = field.at("encoder_sha256");
    if (!encoder.null()) text.encoder_sha256 = encoder.sha256();
    text.empty = optional_text(field, "empty");
    text.multiple = field.at("multiple").integer(1, kHuge);
    text.largest = field.at("largest").integer(1, kMaxSide);
    text.factor = field.at("factor").integer(1, kMaxFactor);
    return text;
}

// A model has classes, or takes prompts.
void check_text(const Field& root, const Manifest& manifest) {
    const ModelInfo& model = manifest.model;
    if (!manifest.text.has_value() != (model.num_classes > 0))
        root.fail("a model has classes, or takes prompts: num_classes is 0 where there is a text, and nowhere else");
    if (!manifest.text) return;
    const TextInfo& text = *manifest.text;
    std::set<std::string> required;
    if (root.has("requires"))
        for (const Field& name : root.at("requires").elements(kMaxRequired)) required.insert(name.text());
    if (required.count("text") == 0) root.fail("text: a bundle that takes prompts requires 'text'");
    const auto instructs = [](const EncoderInfo& encoder) { return encoder.instruction.has_value(); };
    if (std::any_of(text.encoders.begin(), text.encoders.end(), instructs) && required.count("instruction") == 0)
        root.fail("text: a bundle with an instruction requires 'instruction'");
    if (model.input_size % text.multiple != 0 || model.input_size > text.largest)
        root.fail("text: input_size is not one of the sizes that latents can have");
    const std::int64_t pixels = text.largest * text.factor;
    if (text.largest * text.largest > kMaxLatent / model.in_channels || pixels * pixels > kMaxPixels)
        root.fail("text: latents of " + std::to_string(text.largest) + " x " + std::to_string(text.largest) + " are too large");
    if (manifest.graphs.count("context") == 0) root.fail("graph 'context' is missing");
}

Process read_process_of_model(const Field& root) {
    const Field model = root.at("model"), schedule = root.at("schedule");
    Process process;
    process.prediction = model.at("prediction").one_of({"epsilon", "x0", "v", "flow", "flow-to-data", "mean-flow", "edm"});
    const bool betas = process.prediction == "epsilon" || process.prediction == "x0" || process.prediction == "v";
    if (schedule.null() == betas) root.fail("a flow model or EDM's has no schedule, and every other model has one");
    if (model.has("timestep_range")) process.timestep_range = read_timestep_range(model.at("timestep_range"));
    process.schedule = read_schedule(schedule);
    return process;
}

// Tensors are bound by address later: what the manifest says of them has to be what this library will bind.
void check_tensors(const Field& root, const std::string& graph, const char* side, const std::vector<TensorInfo>& tensors,
                   const std::vector<TensorInfo>& contract) {  // what docs/format.md says of a graph's tensors
    for (const TensorInfo& tensor : tensors) {
        const auto same = [&](const TensorInfo& wanted) { return tensor.name == wanted.name; };
        const auto found = std::find_if(contract.begin(), contract.end(), same);
        bool fits = found != contract.end() && tensor.dtype == found->dtype && tensor.shape.size() == found->shape.size();
        for (std::size_t i = 0; fits && i < tensor.shape.size(); ++i)
            fits = tensor.shape[i] == -1 || found->shape[i] == tensor.shape[i];
        if (!fits) root.fail("graph " + graph + ": " + side + " '" + tensor.name + "' is not one that a " + graph + " has");
    }
}

using Contract = std::pair<std::vector<TensorInfo>, std::vector<TensorInfo>>;  // inputs and outputs

// The graphs of a manifest, as far as their tensors are known from it.
struct Graphs {
    const Field& root;
    const Manifest& manifest;

    const TensorInfo& output(const std::string& graph) const {
        const std::vector<TensorInfo>& outputs = manifest.graphs.at(graph).outputs;
        if (outputs.size() != 1) root.fail("graph " + graph + ": expected one output");
        return outputs[0];
    }
    // The last size of an output's shape, bounded.
    std::int64_t width(const std::string& graph, const std::vector<std::int64_t>& shape, std::size_t rank) const {
        if (shape.size() != rank || shape.back() < 1 || shape.back() > kMaxWidth) root.fail("graph " + graph + ": output has no width");
        return shape.back();
    }
    // The shape of the first output, or of one that has this name; none: there is no such output.
    std::vector<std::int64_t> shape(const std::string& graph, const char* name = nullptr) const {
        if (name == nullptr) return manifest.graphs.at(graph).outputs.empty() ? std::vector<std::int64_t>{} : manifest.graphs.at(graph).outputs[0].shape;
        const TensorInfo* found = manifest.output(graph, name);
        return found != nullptr ? found->shape : std::vector<std::int64_t>{};
    }
    // What a decoder or a preview makes of a latent of input_size: of a fixed size, or of one that follows the latent's.
    ImageSize picture(const std::string& graph) const {
        const std::vector<std::int64_t>& shape = output(graph).shape;
        const bool open = manifest.text.has_value();
        bool images = shape.size() == 4 && (shape[3] == 1 || shape[3] == 3);
        images = images && (open ? shape[1] == -1 && shape[2] == -1 : shape[1] >= 1 && shape[2] >= 1 && shape[1] <= kMaxPixels && shape[2] <= kMaxPixels / shape[1]);
        if (!images) root.fail("graph " + graph + ": output is not images of " + (open ? "an open" : "a fixed") + " size");
        const std::int64_t side = open ? manifest.text->factor * manifest.model.input_size : 0;
        return open ? ImageSize{side, side, shape[3]} : ImageSize{shape[1], shape[2], shape[3]};
    }
};

constexpr Dtype f32 = Dtype::float32, i64 = Dtype::int64;

// What a conditioner may read beside the timestep: the vector that `context` makes of a prompt, named numbers.
std::vector<TensorInfo> told_of_prompts(const Graphs& graphs) {
    std::vector<TensorInfo> told = {{"height", f32, {-1}}, {"width", f32, {-1}}, {"guidance", f32, {-1}}};
    if (graphs.manifest.output("context", "vector") != nullptr)
        told.push_back({"vector", f32, {-1, graphs.width("context", graphs.shape("context", "vector"), 2)}});
    return told;
}

// What the graphs of one text encoder have, and what `context` reads of it: any number of tokens, or that which prompts are padded to.
void add_encoder(const Graphs& graphs, const EncoderInfo& encoder, std::map<std::string, Contract>& contracts) {
    std::vector<TensorInfo>& read = contracts["context"].first;
    Contract own = {{{"ids", i64, {-1, encoder.tokens}}}, {}};
    for (const EncoderInfo::Rows& rows : encoder.rows()) {
        std::vector<std::int64_t> shape = {-1};
        shape.insert(shape.end(), rows.shape.begin(), rows.shape.end());
        read.push_back({rows.name, f32, shape});
        own.second.push_back({rows.of_text, f32, shape});
    }
    if (encoder.masked) {
        read.push_back({"mask" + encoder.suffix, i64, {-1, encoder.tokens}});
        own.first.push_back({"mask", i64, {-1, encoder.tokens}});
    }
    if (graphs.manifest.graphs.count("text" + encoder.suffix) != 0) contracts["text" + encoder.suffix] = own;
}

// What a step has besides where the model takes prompts, and the graphs that make it.
std::vector<TensorInfo> prompt_contracts(const Graphs& graphs, std::map<std::string, Contract>& contracts) {
    for (const EncoderInfo& encoder : graphs.manifest.text->encoders) add_encoder(graphs, encoder, contracts);
    const std::vector<std::int64_t> shape = graphs.shape("context", "context");
    const std::int64_t wide = graphs.width("context", shape, 3);
    std::vector<TensorInfo>& made = contracts["context"].second;
    made = {{"context", f32, {-1, shape[1], wide}}, {"context_bias", f32, {-1, shape[1]}}};
    for (const TensorInfo& told : told_of_prompts(graphs))
        if (told.name == "vector") made.push_back(told);
    std::vector<TensorInfo> step = {made[0], made[1], {"prompt", i64, {-1}}};
    if (graphs.manifest.graphs.count("position") == 0) return step;
    step.push_back({"position", f32, {-1, -1, graphs.width("position", graphs.shape("position"), 3)}});
    contracts["position"] = {{{"row", f32, {-1}}, {"column", f32, {-1}}}, {step.back()}};
    return step;
}

void check_graphs(const Field& root, Manifest& manifest) {
    const Graphs graphs{root, manifest};
    const bool open = manifest.text.has_value();
    const auto c = manifest.model.in_channels, h = open ? -1 : manifest.model.input_size, o = manifest.model.out_channels;
    graphs.output("conditioner");
    const std::int64_t m = manifest.modulation_width = graphs.width("conditioner", graphs.shape("conditioner"), 2);
    std::map<std::string, Contract> contracts;
    std::vector<TensorInfo> conditions = {{"timestep", f32, {-1}}};
    if (!open)
        for (const TensorInfo& told : {TensorInfo{"label", i64, {-1}}, {"interval", f32, {-1}}, {"guidance", f32, {-1}}}) conditions.push_back(told);
    else
        for (const TensorInfo& told : told_of_prompts(graphs)) conditions.push_back(told);
    contracts["conditioner"] = {conditions, {{"modulation", f32, {-1, m}}}};
    std::vector<TensorInfo> step = {{"state", f32, {-1, -1, c, h, h}}, {"sample", i64, {-1}}, {"condition", i64, {-1}},
                                    {"modulation", f32, {-1, m}}, {"combine", f32, {-1, -1, o}}, {"x0_from", f32, {-1, 2}},
                                    {"x0_bound", f32, {-1}}, {"log_sigma", f32, {-1, 2}}, {"mix", f32, {-1, -1, -1}},
                                    {"noise", f32, {-1, c, h, h}}};
    if (open)
        for (const TensorInfo& input : prompt_contracts(graphs, contracts)) step.push_back(input);
    for (const auto& graph : manifest.graphs) {
        if (!is_step_graph(graph.first)) continue;
        graphs.output(graph.first);
        contracts[graph.first] = {step, {{"next_state", f32, {-1, -1, c, h, h}}}};
    }
    for (const auto& [graph, image] : {std::pair{"decoder", &manifest.image}, std::pair{"preview", &manifest.preview}}) {
        if (manifest.graphs.count(graph) == 0) continue;
        *image = graphs.picture(graph);
        const TensorInfo pictures = {"image", Dtype::uint8, {-1, open ? -1 : image->height, open ? -1 : image->width, image->channels}};
        contracts[graph] = {{{"latent", f32, {-1, c, h, h}}}, {pictures}};
    }
    for (const auto& [graph, contract] : contracts) {
        check_tensors(root, graph, "input", manifest.graphs.at(graph).inputs, contract.first);
        check_tensors(root, graph, "output", manifest.graphs.at(graph).outputs, contract.second);
    }
}

void check_listed(const Field& root, const Manifest& manifest, const std::string& file) {
    if (manifest.files.count(file) == 0) root.fail("'" + file + "' is used but not listed in files, so its hash is unknown");
}

// Whether a graph of this name is read: others are ignored.
bool known(const std::string& graph, bool takes_prompts) {
    static const std::set<std::string> of_prompts = {"text", "text_2", "text_3", "text_4", "context", "position"};
    return of_prompts.count(graph) != 0 ? takes_prompts : has_plan(graph) || is_step_graph(graph);
}

}  // namespace

bool has_plan(const std::string& graph) {
    static const std::set<std::string> graphs = {"conditioner", "step", "decoder", "preview", "context", "position"};
    return graphs.count(graph) != 0;
}

std::vector<EncoderInfo::Rows> EncoderInfo::rows(std::int64_t words) const {
    std::vector<Rows> all;
    if (width) all.push_back({"hidden" + suffix, {masked ? words : tokens, *width}, "hidden"});
    if (pooled) all.push_back({"pooled" + suffix, {*pooled}, "pooled"});
    return all;
}

std::int64_t TextInfo::most_tokens() const {
    std::int64_t most = 0;
    for (const EncoderInfo& encoder : encoders) most = std::max(most, encoder.tokens);
    return most;
}

const TensorInfo* Manifest::output(const std::string& graph, const char* name) const {
    const auto found = graphs.find(graph);
    if (found == graphs.end()) return nullptr;
    for (const TensorInfo& tensor : found->second.outputs)
        if (tensor.name == name) return &tensor;
    return nullptr;
}

bool Manifest::told(const char* name) const {
    const std::vector<TensorInfo>& inputs = graphs.at("conditioner").inputs;
    return std::any_of(inputs.begin(), inputs.end(), [&](const TensorInfo& tensor) { return tensor.name == name; });
}

ImageSize Manifest::picture_size(const std::string& graph, const Size& of_latent) const {
    const ImageSize& own = graph == "preview" ? preview : image;
    return text && own.channels != 0 ? ImageSize{of_latent.height * text->factor, of_latent.width * text->factor, own.channels} : own;
}

Manifest manifest_from_json(const std::string& text, const std::string& place) {
    const Json json = parse_json(text, place, DITEDGE_ERROR_BUNDLE);
    const Field root(json, place, DITEDGE_ERROR_BUNDLE);
    if (!json.is_object() || !json.contains("format") || json["format"] != "ditedge-bundle")
        root.fail("not the manifest of a ditedge bundle");
    check_version(root.at("version"));
    if (root.has("requires")) check_requires(root.at("requires"));

    Manifest manifest{};
    manifest.model = read_model(root.at("model"));
    manifest.process = read_process_of_model(root);
    if (root.has("text") && !root.at("text").null()) manifest.text = read_text_info(root.at("text"));
    for (const Field& label : root.at("labels").elements(kMaxClasses)) manifest.labels.push_back(label.text());
    if (!manifest.labels.empty() && manifest.labels.size() != static_cast<std::uint64_t>(manifest.model.num_classes))
        root.fail(std::to_string(manifest.labels.size()) + " labels for " + std::to_string(manifest.model.num_classes) +
                  " classes");
    for (const auto& [name, info] : root.at("files").items(kMaxFiles))
        manifest.files[name] = {info.at("sha256").sha256(), info.at("bytes").integer(0, kHuge)};
    for (const auto& [name, info] : root.at("graphs").items(kMaxGraphs)) {
        if (!known(name, manifest.text.has_value())) continue;
        manifest.graphs[name] = read_graph(info);
        check_listed(root, manifest, manifest.graphs[name].file);
        manifest.graph_names.push_back(name);
    }
    for (const char* name : {"conditioner", "step"})
        if (manifest.graphs.count(name) == 0) root.fail(std::string("graph '") + name + "' is missing");
    check_text(root, manifest);
    manifest.model.told_interval = manifest.process.prediction == "mean-flow";
    if (manifest.told("interval") != manifest.model.told_interval)
        root.fail("conditioner: 'interval' is told where the prediction is mean-flow, and nowhere else");
    if (manifest.text && manifest.text->empty) check_listed(root, manifest, *manifest.text->empty);
    for (const auto& [name, file] : root.at("programs").items(kMaxPrograms)) {
        check_listed(root, manifest, manifest.programs[name] = file.text());
        manifest.program_names.push_back(name);
    }
    const Field defaults = root.at("defaults");
    manifest.default_program = defaults.at("program").text();
    manifest.default_guidance = defaults.at("guidance").number();
    if (manifest.programs.count(manifest.default_program) == 0)
        root.fail("default program '" + manifest.default_program + "' is not in programs");
    if (defaults.has("by_tokens"))
        for (const auto& [tokens, program] : defaults.at("by_tokens").items(kMaxPrograms)) {
            if (manifest.programs.count(program.text()) == 0) root.fail("default program '" + program.text() + "' is not in programs");
            // A key that is no number of tokens is no size: what a later release means by it is not known here.
            const bool number = !tokens.empty() && tokens.size() <= 18 && tokens.find_first_not_of("0123456789") == std::string::npos;
            if (number) manifest.by_tokens[std::stoll(tokens)] = program.text();
        }
    check_graphs(root, manifest);
    return manifest;
}

}  // namespace ditedge
