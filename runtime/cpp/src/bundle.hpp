// A bundle: validated, every file opened once and hashed in that reading. Loads no engine. The rules are runtime/bundle/open.py's.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "files.hpp"
#include "manifest.hpp"
#include "program.hpp"
#include "signatures.hpp"

namespace ditedge {

// A graph's bytes and those of the files its weights are in: views, valid during `with_graph`.
struct GraphBytes {
    std::string place;
    std::string_view graph;
    std::vector<std::pair<std::string, std::string_view>> external;  // by location, as the graph names it
};

struct Bundle {
    Manifest manifest;
    std::string sha256;                      // of manifest.json
    TrustedKeys trusted;                     // one of them signed it, and has to have signed its plans
    std::shared_ptr<const Folder> folder;    // plans are opened below it
    std::map<std::string, std::string> programs;                     // file -> its text
    std::map<std::string, std::unique_ptr<const OpenFile>> held;     // graphs and the files of their weights, the empty prompt
    std::map<std::string, std::map<std::string, std::string>> external;  // graph -> location -> file

    void require_graph(const std::string& graph) const;  // throws Error (request) when there is none
    // Hands over the bytes that were hashed. Throws Error (bundle) when a file was written to since, or during `use`.
    void with_graph(const std::string& graph, const std::function<void(const GraphBytes&)>& use) const;
    // nullptr: the default; where steps depend on the picture's size, that of the nearest number of image tokens.
    Program program(const char* name, const Size& latent) const;
    Program program(const char* name) const { return program(name, manifest.latent()); }
    std::int64_t label(const std::string& text) const;
    std::size_t latent_count(const Size& latent) const;  // C * H * W
    std::size_t latent_count() const { return latent_count(manifest.latent()); }
    std::string recorded_empty() const;  // the file of the recorded prompt of no words, which `text` names
};

// Hashes files in parallel. check_hashes false, and no trusted keys: their sizes are checked, and whoever can write to them
// decides what runs.
Bundle open_bundle(const std::filesystem::path& folder, bool check_hashes, TrustedKeys trusted);

}  // namespace ditedge
