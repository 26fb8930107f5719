#include "bundle.hpp"

#include <algorithm>
#include <cctype>

#include "json.hpp"
#include "sha256.hpp"

namespace ditedge {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kHuge = INT64_MAX;
constexpr std::size_t kMaxManifestBytes = 16 << 20;
constexpr std::int64_t kMaxLatent = 1 << 26, kMaxPixels = 1 << 28;  // numbers of one image: above is no image

TensorInfo read_tensor(const Field& field) {
    TensorInfo tensor;
    tensor.name = field.at("name").text();
    const std::string dtype = field.at("dtype").one_of({"float32", "int64", "uint8"});
    tensor.dtype = dtype == "float32" ? Dtype::float32 : dtype == "int64" ? Dtype::int64 : Dtype::uint8;
    for (const Field& dimension : field.at("shape").elements())
        tensor.shape.push_back(dimension.json().is_string() ? -1 : dimension.integer(1, kHuge));
    return tensor;
}

GraphInfo read_graph(const Field& field) {
    GraphInfo graph{field.at("file").text(), {}, {}};
    if (field.has("precision")) field.at("precision").one_of({"float32", "float16", "bfloat16"});
    for (const Field& tensor : field.at("inputs").elements()) graph.inputs.push_back(read_tensor(tensor));
    for (const Field& tensor : field.at("outputs").elements()) graph.outputs.push_back(read_tensor(tensor));
    return graph;
}

ModelInfo read_model(const Field& field) {
    field.at("architecture").one_of({"dit", "custom"});
    for (const char* key : {"patch_size", "hidden_size", "depth", "num_heads", "parameters"})
        field.at(key).integer(1, kHuge);
    field.at("learned_variance").boolean();
    field.at("prediction").one_of({"epsilon", "x0", "v", "flow-to-data"});
    if (field.has("timestep_range")) {
        const Field range = field.at("timestep_range");
        if (range.elements().size() != 2) range.fail("expected two numbers");
        for (const Field& end : range.elements()) end.number();
    }
    if (field.has("frequency_divisor")) field.at("frequency_divisor").integer(1, kHuge);
    if (field.has("mlp_norm_eps")) field.at("mlp_norm_eps").number_between(0, 1);
    ModelInfo model{};
    model.input_size = field.at("input_size").integer(1, 1 << 16);
    model.in_channels = field.at("in_channels").integer(1, 1 << 16);
    model.out_channels = field.at("out_channels").integer(1, 1 << 17);
    model.num_classes = field.at("num_classes").integer(1, kHuge);
    model.guided_channels = field.at("guided_channels").integer(1, kHuge);
    const Field null_class = field.at("null_class");
    if (!null_class.null()) model.null_class = null_class.integer(-kHuge, kHuge);
    if (model.input_size * model.input_size > kMaxLatent / model.in_channels) field.fail("latents are too large");
    return model;
}

void check_schedule(const Field& root) {
    const Field schedule = root.at("schedule");
    const bool flow = root.at("model").at("prediction").text() == "flow-to-data";
    if (schedule.null() != flow) root.fail("a flow model has no schedule, and every other model has one");
    if (flow) return;
    const std::string kind = schedule.at("kind").one_of({"linear", "scaled_linear", "cosine", "given"});
    const std::int64_t steps = schedule.at("steps").integer(1, 100'000);
    for (const char* end : {"beta_start", "beta_end"}) {
        const bool given = schedule.has(end) && !schedule.at(end).null();
        if (given) schedule.at(end).number_between(0, 1);
        if (given != (kind == "linear" || kind == "scaled_linear")) schedule.fail(std::string(end) + " belongs to linear betas, and only to them");
    }
    const bool listed = schedule.has("betas") && !schedule.at("betas").null();
    if (listed != (kind == "given")) schedule.fail("betas are listed for kind 'given', and only for it");
    if (listed) {
        const std::vector<Field> betas = schedule.at("betas").elements();
        if (static_cast<std::int64_t>(betas.size()) != steps) schedule.fail("expected as many betas as steps");
        for (const Field& beta : betas) beta.number_between(0, 1);
    }
    if (schedule.has("zero_terminal_snr")) schedule.at("zero_terminal_snr").boolean();
}

void check_quantization(const Field& field) {
    if (field.null()) return;
    field.at("precision").one_of({"int8", "fp8", "int4"});
    field.at("form").one_of({"onnxruntime", "tensorrt"});
    field.at("weights").one_of({"per-channel", "per-tensor", "blocks"});
    field.at("activations").one_of({"per-token", "per-tensor", "static", "float32"});
    const Field smoothing = field.at("smoothing"), calibration = field.at("calibration");
    if (!smoothing.null() && !(smoothing.number() >= 0 && smoothing.number() <= 1)) smoothing.fail("is not between 0 and 1");
    for (const Field& name : field.at("kept").elements()) name.text();
    field.at("conditioner").one_of({"float32", "int8"});
    field.at("source_bundle").sha256();
    if (!calibration.null()) calibration.sha256();
}

void check_vae(const Field& vae, std::int64_t channels) {
    if (vae.null()) return;
    vae.at("kind").one_of({"kl", "tiny"});
    vae.at("source_sha256").sha256();
    vae.at("precision").one_of({"float32", "float16"});
    vae.at("scaling_factor").number_between(0, 1e308);
    vae.at("shift_factor").number();
    for (const char* key : {"latents_mean", "latents_std"}) {
        if (!vae.has(key) || vae.at(key).null()) continue;
        const std::vector<Field> values = vae.at(key).elements();
        if (values.size() != static_cast<std::size_t>(channels)) vae.fail("expected a mean and a deviation for each latent channel");
        for (const Field& value : values) key == std::string("latents_std") ? value.number_between(0, 1e308) : value.number();
    }
}

std::optional<PreviewInfo> read_preview(const Field& field, std::int64_t channels) {
    if (field.null()) return std::nullopt;
    PreviewInfo preview{{}, {}, field.at("scale").integer(1, 64)};
    const std::vector<Field> rows = field.at("weight").elements();
    for (const Field& value : field.at("bias").elements()) preview.bias.push_back(static_cast<float>(value.number()));
    for (const Field& row : rows) {
        const std::vector<Field> values = row.elements();
        if (values.size() != static_cast<std::size_t>(channels)) field.fail("expected a weight for each latent channel");
        for (const Field& value : values) preview.weight.push_back(static_cast<float>(value.number()));
    }
    if ((rows.size() != 1 && rows.size() != 3) || preview.bias.size() != rows.size())
        field.fail("expected 1 or 3 rows of weights, with one bias each");
    return preview;
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

void check_graphs(const Field& root, Manifest& manifest) {
    const auto c = manifest.model.in_channels, h = manifest.model.input_size, o = manifest.model.out_channels;
    const auto output = [&](const char* graph) -> const TensorInfo& {
        const std::vector<TensorInfo>& outputs = manifest.graphs.at(graph).outputs;
        if (outputs.size() != 1) root.fail(std::string("graph ") + graph + ": expected one output");
        return outputs[0];
    };
    const TensorInfo& modulation = output("conditioner");
    if (modulation.shape.size() != 2 || modulation.shape[1] < 1 || modulation.shape[1] > (1 << 24))
        root.fail("graph conditioner: output has no width");
    const std::int64_t m = manifest.modulation_width = modulation.shape[1];
    const auto f32 = Dtype::float32, i64 = Dtype::int64;
    std::map<std::string, std::pair<std::vector<TensorInfo>, TensorInfo>> contracts = {
        {"conditioner", {{{"timestep", f32, {-1}}, {"label", i64, {-1}}}, {"modulation", f32, {-1, m}}}},
        {"step",
         {{{"state", f32, {-1, -1, c, h, h}}, {"sample", i64, {-1}}, {"condition", i64, {-1}},
           {"modulation", f32, {-1, m}}, {"combine", f32, {-1, -1, o}}, {"x0_from", f32, {-1, 2}},
           {"x0_bound", f32, {-1}}, {"log_sigma", f32, {-1, 2}}, {"mix", f32, {-1, -1, -1}},
           {"noise", f32, {-1, c, h, h}}},
          {"next_state", f32, {-1, -1, c, h, h}}}}};
    if (manifest.graphs.count("decoder") != 0) {
        const std::vector<std::int64_t>& shape = output("decoder").shape;
        if (shape.size() != 4 || *std::min_element(shape.begin() + 1, shape.end()) < 1 || (shape[3] != 1 && shape[3] != 3) ||
            shape[1] > kMaxPixels || shape[2] > kMaxPixels / shape[1])
            root.fail("graph decoder: output is not images of a fixed size");
        manifest.image = {shape[1], shape[2], shape[3]};
        contracts["decoder"] = {{{"latent", f32, {-1, c, h, h}}}, {"image", Dtype::uint8, {-1, shape[1], shape[2], shape[3]}}};
    }
    for (const auto& [graph, contract] : contracts) {
        check_tensors(root, graph, "input", manifest.graphs.at(graph).inputs, contract.first);
        output(graph.c_str());
        check_tensors(root, graph, "output", manifest.graphs.at(graph).outputs, {contract.second});
    }
}

void check_listed(const Field& root, const Manifest& manifest, const std::string& file) {
    if (manifest.files.count(file) == 0) root.fail("'" + file + "' is used but not listed in files, so its hash is unknown");
}

// folder / name, refused when it would leave the folder by '..', an absolute path or a symbolic link.
fs::path inside(const fs::path& folder, const std::string& name) {
    const fs::path path(name);
    bool outside = name.empty() || name == "." || path.is_absolute() || name.find('\\') != std::string::npos ||
                   name.find('\0') != std::string::npos;
    for (const fs::path& part : path) outside = outside || part == "..";
    if (!outside) {
        const fs::path relative = fs::weakly_canonical(folder / path).lexically_relative(fs::canonical(folder));
        outside = relative.empty() || relative == "." || *relative.begin() == "..";
    }
    if (outside) fail_bundle((folder / "manifest.json").string() + ": path '" + name + "' leaves the bundle");
    return folder / path;
}

std::string lower(std::string text) {
    for (char& letter : text) letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
    return text;
}

std::string trimmed(const std::string& text) {
    const auto first = text.find_first_not_of(" \t\r\n"), last = text.find_last_not_of(" \t\r\n");
    return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

}  // namespace

Manifest manifest_from_json(const std::string& text, const std::string& place) {
    const Json json = parse_json(text, place, DITEDGE_ERROR_BUNDLE);
    const Field root(json, place, DITEDGE_ERROR_BUNDLE);
    if (!json.is_object() || !json.contains("format") || json["format"] != "ditedge-bundle")
        root.fail("not the manifest of a ditedge bundle");
    const Field version = root.at("version");
    if (!version.json().is_number_integer() || version.json() != 1)
        root.fail("this library reads bundle version 1: update ditedge, or export the checkpoint again");
    root.at("name").text();
    root.at("made_by").text();
    root.at("source_sha256").sha256();

    Manifest manifest{};
    manifest.model = read_model(root.at("model"));
    check_schedule(root);
    if (root.has("quantization")) check_quantization(root.at("quantization"));
    if (root.has("vae")) check_vae(root.at("vae"), manifest.model.in_channels);
    if (root.has("preview")) manifest.preview = read_preview(root.at("preview"), manifest.model.in_channels);
    for (const Field& label : root.at("labels").elements()) manifest.labels.push_back(label.text());
    if (!manifest.labels.empty() && manifest.labels.size() != static_cast<std::uint64_t>(manifest.model.num_classes))
        root.fail(std::to_string(manifest.labels.size()) + " labels for " + std::to_string(manifest.model.num_classes) +
                  " classes");
    for (const auto& [name, info] : root.at("files").items())
        manifest.files[name] = {info.at("sha256").sha256(), info.at("bytes").integer(0, kHuge)};
    for (const auto& [name, info] : root.at("graphs").items()) {
        if (name != "conditioner" && name != "step" && name != "decoder") info.fail("unknown graph");
        manifest.graphs[name] = read_graph(info);
        check_listed(root, manifest, manifest.graphs[name].file);
        manifest.graph_names.push_back(name);
    }
    for (const char* name : {"conditioner", "step"})
        if (manifest.graphs.count(name) == 0) root.fail(std::string("graph '") + name + "' is missing");
    for (const auto& [name, file] : root.at("programs").items()) {
        check_listed(root, manifest, manifest.programs[name] = file.text());
        manifest.program_names.push_back(name);
    }
    for (const Field& golden : root.at("golden").elements()) {
        check_listed(root, manifest, golden.at("file").text());
        golden.at("guidance").number();
        golden.at("tolerance").number_between(0, 1);
        const std::string program = golden.at("program").text();
        if (manifest.programs.count(program) == 0) golden.fail("golden program '" + program + "' is not in programs");
    }
    const Field defaults = root.at("defaults");
    manifest.default_program = defaults.at("program").text();
    manifest.default_guidance = defaults.at("guidance").number();
    if (manifest.programs.count(manifest.default_program) == 0)
        root.fail("default program '" + manifest.default_program + "' is not in programs");
    check_graphs(root, manifest);
    return manifest;
}

Bundle open_bundle(const fs::path& folder, bool check_hashes) {
    std::error_code code;
    if (!fs::is_directory(folder, code)) fail_bundle(folder.string() + " is not a bundle: not a folder");
    const fs::path place = folder / "manifest.json";
    if (!fs::is_regular_file(place, code)) fail_bundle(folder.string() + " is not a bundle: it has no manifest.json");
    const std::string text = read_text(place, kMaxManifestBytes, DITEDGE_ERROR_BUNDLE);
    Sha256 hash;
    hash.update(text.data(), text.size());
    Bundle bundle{folder, manifest_from_json(text, place.string()), hash.hexdigest()};
    for (const auto& [name, info] : bundle.manifest.files) {
        const fs::path file = inside(folder, name);
        if (!fs::is_regular_file(file, code))
            fail_bundle(folder.string() + ": file " + name + " is missing; export the checkpoint again");
        if (static_cast<std::int64_t>(fs::file_size(file)) != info.bytes ||
            (check_hashes && sha256_of_file(file) != info.sha256))
            fail_bundle(file.string() + ": does not match its hash in the manifest: damaged or tampered with");
    }
    return bundle;
}

fs::path Bundle::graph_file(const std::string& graph) const {
    const auto found = manifest.graphs.find(graph);
    if (found == manifest.graphs.end())
        fail_request("bundle " + folder.string() + " has no " + graph + ": its latents cannot become images");
    return folder / found->second.file;
}

Program Bundle::program(const char* name) const {
    const std::string chosen = name != nullptr ? name : manifest.default_program;
    const auto found = manifest.programs.find(chosen);
    if (found == manifest.programs.end()) fail_request("no program '" + chosen + "' in the bundle");
    return read_program(folder / found->second);
}

std::int64_t Bundle::label(const std::string& text) const {
    const auto count = manifest.model.num_classes;
    if (!text.empty() && text.find_first_not_of("0123456789") == std::string::npos) {
        const std::int64_t number = text.size() <= 18 ? std::stoll(text) : count;
        if (number >= count) fail_request("class " + text + ": the model has classes 0 to " + std::to_string(count - 1));
        return number;
    }
    const std::string wanted = lower(trimmed(text));
    for (const bool whole : {true, false}) {  // ImageNet's names are lists: "great white shark, white shark, ..."
        std::vector<std::int64_t> found;
        for (std::size_t i = 0; i < manifest.labels.size(); ++i) {
            const std::string label = lower(manifest.labels[i]);
            bool matches = whole && label == wanted;
            for (std::size_t start = 0; !whole && start <= label.size();) {
                const std::size_t end = std::min(label.find(',', start), label.size());
                matches = matches || trimmed(label.substr(start, end - start)) == wanted;
                start = end + 1;
            }
            if (matches) found.push_back(static_cast<std::int64_t>(i));
        }
        if (found.size() > 1) fail_request("class '" + text + "' has several meanings: give its number");
        if (!found.empty()) return found[0];
    }
    fail_request("class '" + text + "' is unknown");
}

std::size_t Bundle::latent_count() const {
    return static_cast<std::size_t>(manifest.model.in_channels * manifest.model.input_size * manifest.model.input_size);
}

}  // namespace ditedge
