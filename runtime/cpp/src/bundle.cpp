#include "bundle.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <numeric>
#include <system_error>
#include <thread>

#include "json.hpp"
#include "onnx_graph.hpp"
#include "sha256.hpp"

namespace ditedge {
namespace {

namespace fs = std::filesystem;

// The bounds of docs/format.md, "Limits": the same as runtime/bundle/manifest.py's.
constexpr std::int64_t kHuge = INT64_MAX, kMaxSide = 1 << 16, kMaxClasses = 1'000'000, kMaxWidth = 1 << 24;
constexpr std::int64_t kMaxLatent = 1 << 26, kMaxPixels = 1 << 28;  // numbers of one image: above is no image
constexpr std::size_t kMaxPrograms = 1000, kMaxProgramsBytes = 64 << 20;
constexpr std::size_t kMaxFiles = 1000, kMaxGolden = 100, kMaxTensors = 16, kMaxRank = 8, kMaxSteps = 100'000;
constexpr int kThreadBytes = 23;       // a further thread hashes where there are 8 MB more: less is not worth its start
constexpr std::int64_t kMaxThreads = 16;

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
    if (field.has("precision")) graph.float32 = field.at("precision").one_of({"float32", "float16", "bfloat16"}) == "float32";
    for (const Field& tensor : field.at("inputs").elements(kMaxTensors)) graph.inputs.push_back(read_tensor(tensor));
    for (const Field& tensor : field.at("outputs").elements(kMaxTensors)) graph.outputs.push_back(read_tensor(tensor));
    return graph;
}

ModelInfo read_model(const Field& field) {
    field.at("architecture").one_of({"dit", "custom"});
    for (const char* key : {"patch_size", "hidden_size", "depth", "num_heads", "parameters"})
        field.at(key).integer(1, kHuge);
    field.at("learned_variance").boolean();
    field.at("prediction").one_of({"epsilon", "x0", "v", "flow-to-data"});
    if (field.has("frequency_divisor")) field.at("frequency_divisor").integer(1, kHuge);
    if (field.has("mlp_norm_eps")) field.at("mlp_norm_eps").number_between(0, 1);
    if (field.has("mlp_ratio")) field.at("mlp_ratio").number_between(0, 1024);
    ModelInfo model{};
    model.input_size = field.at("input_size").integer(1, kMaxSide);
    model.in_channels = field.at("in_channels").integer(1, kMaxSide);
    model.out_channels = field.at("out_channels").integer(1, 2 * kMaxSide);
    model.num_classes = field.at("num_classes").integer(1, kMaxClasses);
    model.guided_channels = field.at("guided_channels").integer(1, kHuge);
    const Field null_class = field.at("null_class");
    if (!null_class.null()) model.null_class = null_class.integer(0, kMaxClasses);
    if (model.input_size * model.input_size > kMaxLatent / model.in_channels) field.fail("latents are too large");
    return model;
}

Process read_process_of_model(const Field& root) {
    const Field model = root.at("model"), schedule = root.at("schedule");
    Process process;
    process.prediction = model.at("prediction").text();
    if (schedule.null() != (process.prediction == "flow-to-data")) root.fail("a flow model has no schedule, and every other model has one");
    if (model.has("timestep_range")) process.timestep_range = read_timestep_range(model.at("timestep_range"));
    process.schedule = read_schedule(schedule);
    return process;
}

void check_quantization(const Field& field) {
    if (field.null()) return;
    field.at("precision").one_of({"int8", "fp8", "int4"});
    field.at("form").one_of({"onnxruntime", "tensorrt"});
    field.at("weights").one_of({"per-channel", "per-tensor", "blocks"});
    field.at("activations").one_of({"per-token", "static", "float32"});
    const Field smoothing = field.at("smoothing"), calibration = field.at("calibration");
    if (!smoothing.null() && !(smoothing.number() >= 0 && smoothing.number() <= 1)) smoothing.fail("is not between 0 and 1");
    for (const Field& name : field.at("kept").elements(kMaxSteps)) name.text();
    field.at("conditioner").one_of({"float32", "int8"});
    if (field.has("decoder") && !field.at("decoder").null()) field.at("decoder").one_of({"int8"});
    field.at("source_bundle").sha256();
    if (!calibration.null()) calibration.sha256();
}

void check_vae(const Field& vae, std::int64_t channels) {
    if (vae.null()) return;
    vae.at("kind").one_of({"kl", "tiny"});
    vae.at("source_sha256").sha256();
    vae.at("precision").one_of({"float32", "float16"});
    vae.at("scaling_factor").number_between(0, 3.1e38);
    vae.at("shift_factor").number();
    for (const char* key : {"latents_mean", "latents_std"}) {
        if (!vae.has(key) || vae.at(key).null()) continue;
        const std::vector<Field> values = vae.at(key).elements(kMaxSide);
        if (values.size() != static_cast<std::size_t>(channels)) vae.fail("expected a mean and a deviation for each latent channel");
        for (const Field& value : values) key == std::string("latents_std") ? value.number_between(0, 3.1e38) : value.number();
    }
}

std::optional<PreviewInfo> read_preview(const Field& field, std::int64_t channels) {
    if (field.null()) return std::nullopt;
    PreviewInfo preview{{}, {}, field.at("scale").integer(1, 64)};
    const std::vector<Field> rows = field.at("weight").elements(3);
    for (const Field& value : field.at("bias").elements(3)) preview.bias.push_back(static_cast<float>(value.number()));
    for (const Field& row : rows) {
        const std::vector<Field> values = row.elements(kMaxSide);
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
    if (modulation.shape.size() != 2 || modulation.shape[1] < 1 || modulation.shape[1] > kMaxWidth)
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

bool leaves(const std::string& name) {
    const fs::path path(name);
    bool outside = name.empty() || name == "." || path.is_absolute() || name.find('\\') != std::string::npos ||
                   name.find('\0') != std::string::npos;
    for (const fs::path& part : path) outside = outside || part == "..";
    return outside;
}

// Refused when it would leave the folder by '..', an absolute path or a symbolic link.
void check_inside(const Folder& folder, const std::string& name) {
    bool outside = leaves(name);
    if (!outside) {
        const fs::path relative = fs::weakly_canonical(folder.path / name).lexically_relative(fs::canonical(folder.path));
        outside = relative.empty() || relative == "." || *relative.begin() == "..";
    }
    if (outside) fail_bundle((folder.path / "manifest.json").string() + ": path '" + name + "' leaves the bundle");
}

// What a device may do without: files that no runtime reads.
bool optional(const std::string& name) { return name.rfind("golden/", 0) == 0 || name.rfind("quality/", 0) == 0; }

// One file: opened once and hashed.
struct Reading {
    const std::string& name;
    const FileInfo& info;
    bool program = false;
    std::string text = {};                           // of a program
    std::unique_ptr<const OpenFile> file = nullptr;  // null: optional, and not there

    void read(const Folder& folder, bool check_hashes) {
        check_inside(folder, name);
        if (!OpenFile::exists(folder, name)) {
            if (optional(name) && !program) return;
            fail_bundle(folder.path.string() + ": file " + name + " is missing; export the checkpoint again");
        }
        file = std::make_unique<const OpenFile>(folder, name, FileInfo{check_hashes ? info.sha256 : "", info.bytes},
                                                ": does not match its hash in the manifest: damaged or tampered with");
        if (program) text = file->text();
        else file->check();
    }
};

// All of them, the largest first, on as many processors as there are. Throws what the first in order has to say.
void read_all(std::vector<Reading>& readings, const Folder& folder, bool check_hashes) {
    std::vector<std::size_t> order(readings.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return readings[a].info.bytes > readings[b].info.bytes; });
    std::int64_t bytes = 0;
    for (const Reading& reading : readings) bytes += std::min(reading.info.bytes, kHuge / 1024);
    std::vector<std::exception_ptr> failures(readings.size());
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
        for (std::size_t at = next++; at < order.size(); at = next++) {
            try {
                readings[order[at]].read(folder, check_hashes);
            } catch (...) {
                failures[order[at]] = std::current_exception();
                next = order.size();
            }
        }
    };
    std::vector<std::thread> threads;
    const auto useful = std::min<std::int64_t>(std::thread::hardware_concurrency(), 1 + (bytes >> kThreadBytes));
    try {
        for (std::int64_t i = 1; i < std::min<std::int64_t>(useful, kMaxThreads); ++i) threads.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads here: those that run do the work
    }
    work();
    for (std::thread& thread : threads) thread.join();
    for (const std::exception_ptr& failure : failures)
        if (failure) std::rethrow_exception(failure);
}

// A graph is bound by address later: it has to have the manifest's tensors, before an engine takes memory for them.
void check_contract(const OnnxGraph& graph, const GraphInfo& info, const std::string& place) {
    const auto check = [&](const std::vector<TensorInfo>& tensors, const std::vector<TensorInfo>& promised) {
        for (const TensorInfo& tensor : tensors) {
            const auto fits = [](std::int64_t has, std::int64_t wants) { return wants < 0 ? has >= -1 : has == wants; };
            const bool found = std::any_of(promised.begin(), promised.end(), [&](const TensorInfo& wanted) {
                return tensor.name == wanted.name && tensor.dtype == wanted.dtype &&
                       std::equal(tensor.shape.begin(), tensor.shape.end(), wanted.shape.begin(), wanted.shape.end(), fits);
            });
            if (!found) fail_bundle(place + ": tensor '" + tensor.name + "' is not the one that the manifest describes");
        }
    };
    check(graph.inputs, info.inputs);
    check(graph.outputs, info.outputs);
    if (graph.outputs.size() != info.outputs.size()) fail_bundle(place + ": outputs are not those that the manifest describes");
}

// Reads each graph's tensors and references, and lets go of the files that no graph uses.
void read_graphs(Bundle& bundle, std::map<std::string, std::unique_ptr<const OpenFile>> files) {
    for (const auto& [name, info] : bundle.manifest.graphs) {
        if (files.count(info.file) == 0) fail_bundle((bundle.folder->path / info.file).string() + " is missing: a graph is not optional");
        const OpenFile& file = *files.at(info.file);
        const OnnxGraph graph = read_onnx(file.map()->bytes(), kMaxFiles, file.place());
        check_contract(graph, info, file.place());
        for (const std::string& location : graph.locations) {
            const std::string other = (fs::path(info.file).parent_path() / location).lexically_normal().string();
            if (leaves(location) || files.count(other) == 0)
                fail_bundle(file.place() + ": keeps weights in '" + location + "', which is not listed in files, so its hash is unknown");
            bundle.external[name][location] = other;
        }
    }
    const auto hold = [&](const std::string& name) {
        if (files.count(name) != 0) bundle.held.insert(files.extract(name));
    };
    for (const auto& [name, info] : bundle.manifest.graphs) {
        hold(info.file);
        for (const auto& [location, other] : bundle.external[name]) hold(other);
    }
}

// A to Z, in any locale: a Turkish one would make the I of "SHIRT" another letter.
std::string lower(std::string text) {
    for (char& letter : text)
        if (letter >= 'A' && letter <= 'Z') letter = static_cast<char>(letter - 'A' + 'a');
    return text;
}

// "a, b, c": `most` of them.
std::string listed(const std::vector<std::string>& names, std::size_t most, const char* between = ", ") {
    std::string list;
    for (std::size_t i = 0; i < std::min(names.size(), most); ++i) list += (i == 0 ? "" : between) + names[i];
    return list;
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
    manifest.process = read_process_of_model(root);
    if (root.has("quantization")) check_quantization(root.at("quantization"));
    if (root.has("vae")) check_vae(root.at("vae"), manifest.model.in_channels);
    if (root.has("preview")) manifest.preview = read_preview(root.at("preview"), manifest.model.in_channels);
    for (const Field& label : root.at("labels").elements(kMaxClasses)) manifest.labels.push_back(label.text());
    if (!manifest.labels.empty() && manifest.labels.size() != static_cast<std::uint64_t>(manifest.model.num_classes))
        root.fail(std::to_string(manifest.labels.size()) + " labels for " + std::to_string(manifest.model.num_classes) +
                  " classes");
    for (const auto& [name, info] : root.at("files").items(kMaxFiles))
        manifest.files[name] = {info.at("sha256").sha256(), info.at("bytes").integer(0, kHuge)};
    for (const auto& [name, info] : root.at("graphs").items(3)) {
        if (name != "conditioner" && name != "step" && name != "decoder") info.fail("unknown graph");
        manifest.graphs[name] = read_graph(info);
        check_listed(root, manifest, manifest.graphs[name].file);
        manifest.graph_names.push_back(name);
    }
    for (const char* name : {"conditioner", "step"})
        if (manifest.graphs.count(name) == 0) root.fail(std::string("graph '") + name + "' is missing");
    for (const auto& [name, file] : root.at("programs").items(kMaxPrograms)) {
        check_listed(root, manifest, manifest.programs[name] = file.text());
        manifest.program_names.push_back(name);
    }
    for (const Field& golden : root.at("golden").elements(kMaxGolden)) {
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

Bundle open_bundle(const fs::path& path, bool check_hashes, TrustedKeys trusted) {
    Bundle bundle;
    bundle.folder = std::make_shared<const Folder>(path);
    const Folder& folder = *bundle.folder;
    const std::string name = "manifest.json", place = (path / name).string();
    if (!OpenFile::exists(folder, name)) fail_bundle(path.string() + " is not a bundle: it has no manifest.json");
    const std::string text = read_text(folder.descriptor.get(), name, place, kMaxManifestBytes, DITEDGE_ERROR_BUNDLE);
    check_signed(folder, name, text, trusted);
    bundle.manifest = manifest_from_json(text, place);
    bundle.sha256 = sha256_of(text);
    std::vector<Reading> readings;
    for (const auto& [file, info] : bundle.manifest.files) readings.push_back({file, info});
    std::int64_t left = kMaxProgramsBytes;
    for (Reading& reading : readings) {  // held in memory, all of them
        for (const auto& [program, file] : bundle.manifest.programs) reading.program = reading.program || file == reading.name;
        if (!reading.program) continue;
        if (reading.info.bytes > static_cast<std::int64_t>(kMaxProgramBytes)) fail_bundle(place + ": program " + reading.name + " is larger than 16 MB");
        if ((left -= reading.info.bytes) < 0) fail_bundle(place + ": its programs are larger than 64 MB together");
    }
    read_all(readings, folder, check_hashes || !trusted.empty());
    std::map<std::string, std::unique_ptr<const OpenFile>> files;
    for (Reading& reading : readings) {
        if (reading.program) bundle.programs[reading.name] = std::move(reading.text);
        if (reading.file != nullptr) files[reading.name] = std::move(reading.file);
    }
    read_graphs(bundle, std::move(files));
    bundle.trusted = std::move(trusted);
    return bundle;
}

void Bundle::require_graph(const std::string& graph) const {
    if (manifest.graphs.count(graph) == 0)
        fail_request("bundle " + folder->path.string() + " has no " + graph + ": its latents cannot become images");
}

void Bundle::with_graph(const std::string& graph, const std::function<void(const GraphBytes&)>& use) const {
    const OpenFile& file = *held.at(manifest.graphs.at(graph).file);
    std::vector<const OpenFile*> files = {&file};
    std::vector<std::unique_ptr<Mapping>> mappings;
    GraphBytes bytes{file.place(), {}, {}};
    file.check();
    mappings.push_back(file.map());
    bytes.graph = mappings.back()->bytes();
    const auto found = external.find(graph);
    if (found != external.end())
        for (const auto& [location, name] : found->second) {
            files.push_back(held.at(name).get());
            files.back()->check();
            mappings.push_back(files.back()->map());
            bytes.external.emplace_back(location, mappings.back()->bytes());
        }
    use(bytes);
    for (const OpenFile* used : files) used->check();
}

Program Bundle::program(const char* name) const {
    const std::string chosen = name != nullptr ? name : manifest.default_program;
    const auto found = manifest.programs.find(chosen);
    if (found == manifest.programs.end())
        fail_request("no program '" + chosen + "' in the bundle; it has " + listed(manifest.program_names, 20));
    return program_from_json(programs.at(found->second), (folder->path / found->second).string());
}

std::int64_t Bundle::label(const std::string& text) const {
    const auto count = manifest.model.num_classes;
    const auto& names = manifest.labels;  // an exact name comes first: a class may be called 1990
    const auto exact = std::find(names.begin(), names.end(), text);
    if (exact != names.end() && std::find(exact + 1, names.end(), text) == names.end()) return exact - names.begin();
    if (!text.empty() && text.find_first_not_of("0123456789") == std::string::npos) {
        const std::int64_t number = text.size() <= 18 ? std::stoll(text) : count;
        if (number >= count) fail_request("class " + text + ": the model has classes 0 to " + std::to_string(count - 1));
        return number;
    }
    const std::string wanted = lower(trimmed(text));
    for (const bool whole : {true, false}) {  // ImageNet's names are lists: "great white shark, white shark, ..."
        std::vector<std::string> found;
        for (std::size_t i = 0; i < names.size(); ++i) {
            const std::string label = lower(names[i]);
            bool matches = whole && label == wanted;
            for (std::size_t start = 0; !whole && start <= label.size();) {
                const std::size_t end = std::min(label.find(',', start), label.size());
                matches = matches || trimmed(label.substr(start, end - start)) == wanted;
                start = end + 1;
            }
            if (matches) found.push_back(std::to_string(i));
        }
        if (found.size() > 1) fail_request("class '" + text + "' has several meanings: give its number, " + listed(found, 20, " or "));
        if (!found.empty()) return std::stoll(found[0]);
    }
    fail_request("class '" + text + "' is unknown: give " + (names.empty() ? "a number, 0 to " + std::to_string(count - 1) : "one of " + listed(names, 20)));
}

std::size_t Bundle::latent_count() const {
    return static_cast<std::size_t>(manifest.model.in_channels * manifest.model.input_size * manifest.model.input_size);
}

}  // namespace ditedge
