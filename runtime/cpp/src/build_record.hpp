// build.json beside the plans of one target (runtime/plans/record.py): what they were built from, by which library, for
// which GPUs. A plan is executable code: nothing of it is deserialised before this record and its hashes were checked.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "bundle.hpp"

namespace ditedge {

constexpr std::size_t kMaxRecordBytes = 1 << 20;

struct ShapeRange {
    std::vector<std::int64_t> min, max;  // as long as each other
};

struct PlanInfo {
    FileInfo plan;
    std::map<std::string, ShapeRange> profile;  // by input; inputs of fixed shape are not in it
    std::map<std::string, std::vector<std::int64_t>> one_image;  // the only shapes of the second profile; none: there is none
    std::vector<std::map<std::string, ShapeRange>> further;      // profiles after those: further sizes of a model that takes prompts
};

struct BuildRecord {
    std::string library, library_version;           // "tensorrt" or "tensorrt-rtx"; "10.3.0.26"
    std::vector<std::string> capabilities, flags;   // "sm87", ...; none: every GPU that the library supports
    std::int64_t max_batch = 0;
    std::optional<std::int64_t> weight_streaming_mb;  // of weights kept on the device; none: all
    std::string bundle_sha256;
    std::map<std::string, PlanInfo> plans;  // by graph
    std::string place;                      // the record's path, for messages

    // The index of the plan's profile that takes these inputs' shapes: that of one image before any other. 0 where none does,
    // which whoever binds them will say.
    std::int32_t profile_for(const std::string& graph, const std::map<std::string, std::vector<std::int64_t>>& shapes) const;
    // One input's shape against an optimisation profile. Throws Error (request).
    void check_shape(const std::string& graph, std::int32_t profile, const std::string& input, const std::vector<std::int64_t>& shape) const;
    // H and W of a model that takes prompts against what was built. Throws Error (request).
    void check_size(const Size& latent, const TextInfo& text) const;
};

// The file's name of a graph's plan: the step's is dit.plan.
std::string plan_name(const std::string& graph);

// Throws Error (bundle); `place` is only for messages.
BuildRecord build_record_from_json(const std::string& text, const std::string& place);
// The record in engines/`library`/, for this bundle, signed as the bundle is. Throws Error (engine) when there is none, Error
// (bundle) when it is another bundle's.
BuildRecord read_build_record(const Bundle& bundle, const std::string& library);

}  // namespace ditedge
