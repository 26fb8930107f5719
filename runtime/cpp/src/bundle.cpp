#include "bundle.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <numeric>
#include <system_error>
#include <thread>

#include "onnx_graph.hpp"
#include "sha256.hpp"

namespace ditedge {
namespace {

namespace fs = std::filesystem;

// The bounds of docs/format.md, "Limits": the same as runtime/bundle/open.py's.
constexpr std::size_t kMaxProgramsBytes = 64 << 20;
constexpr int kThreadBytes = 23;       // a further thread hashes where there are 8 MB more: less is not worth its start
constexpr std::int64_t kMaxThreads = 16;

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
    for (const Reading& reading : readings) bytes += std::min(reading.info.bytes, INT64_MAX / 1024);
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
    if (!bundle.manifest.text || !bundle.manifest.text->empty) return;
    const std::string& empty = *bundle.manifest.text->empty;
    hold(empty);
    if (bundle.held.count(empty) == 0) fail_bundle((bundle.folder->path / empty).string() + " is missing: guidance leads away from it");
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
        fail_request("bundle " + folder->path.string() + " has no " + graph +
                     (graph == "decoder" ? ": its latents cannot become images" : ": take another program"));
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

Program Bundle::program(const char* name, const Size& latent) const {
    std::string chosen = name != nullptr ? name : manifest.default_program;
    if (name == nullptr && manifest.text && !(latent == manifest.latent())) {
        const std::int64_t tokens = manifest.text->patches(latent);
        std::int64_t apart = INT64_MAX;
        for (const auto& [known, program] : manifest.by_tokens)
            if (std::abs(known - tokens) < apart) apart = std::abs(known - tokens), chosen = program;
    }
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

std::size_t Bundle::latent_count(const Size& latent) const {
    return static_cast<std::size_t>(manifest.model.in_channels * latent.height * latent.width);
}

std::string Bundle::recorded_empty() const { return held.at(*manifest.text->empty)->text(); }

}  // namespace ditedge
