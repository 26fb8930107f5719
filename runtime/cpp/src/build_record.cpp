#include "build_record.hpp"

#include <algorithm>

#include "json.hpp"
#include "manifest.hpp"

namespace ditedge {
namespace {

constexpr std::size_t kMaxRank = 8, kMaxNames = 1000;

std::vector<std::int64_t> read_sizes(const Field& field) {
    std::vector<std::int64_t> sizes;
    for (const Field& size : field.elements(kMaxRank)) sizes.push_back(size.integer(0, INT32_MAX));
    return sizes;
}

ShapeRange read_range(const Field& field) {
    ShapeRange range;
    for (const auto& [key, sizes] : {std::pair{"min", &range.min}, std::pair{"max", &range.max}})
        *sizes = read_sizes(field.at(key));
    if (range.min.size() != range.max.size()) field.fail("min and max are not of one rank");
    return range;
}

std::string listed(const std::vector<std::int64_t>& sizes) {
    std::string text;
    for (const std::int64_t size : sizes) text += (text.empty() ? "[" : ", ") + std::to_string(size);
    return text + "]";
}

}  // namespace

std::string plan_name(const std::string& graph) { return (graph == "step" ? "dit" : graph) + ".plan"; }

BuildRecord build_record_from_json(const std::string& text, const std::string& place) {
    const Json json = parse_json(text, place, DITEDGE_ERROR_BUNDLE);
    const Field root(json, place, DITEDGE_ERROR_BUNDLE);
    root.at("format").one_of({"ditedge-engines"});
    root.at("version").integer(1, 1);
    BuildRecord record;
    record.place = place;
    record.library = root.at("library").one_of({"tensorrt", "tensorrt-rtx"});
    record.library_version = root.at("library_version").text();
    for (const Field& name : root.at("compute_capabilities").elements(kMaxNames)) record.capabilities.push_back(name.text());
    for (const Field& name : root.at("flags").elements(kMaxNames)) record.flags.push_back(name.text());
    record.max_batch = root.at("max_batch").integer(1, INT32_MAX);
    if (root.has("weight_streaming_mb") && !root.at("weight_streaming_mb").null())
        record.weight_streaming_mb = root.at("weight_streaming_mb").integer(0, 1 << 30);
    record.bundle_sha256 = root.at("bundle_sha256").sha256();
    for (const auto& [graph, plan] : root.at("plans").items(kMaxGraphs)) {
        if (!has_plan(graph)) continue;
        plan.at("file").one_of({plan_name(graph).c_str()});
        PlanInfo& info = record.plans[graph];
        info.plan = {plan.at("plan").at("sha256").sha256(), plan.at("plan").at("bytes").integer(0, INT64_MAX)};
        for (const auto& [input, range] : plan.at("profile").items(kMaxNames)) info.profile[input] = read_range(range);
        if (!plan.has("one_image")) continue;
        for (const auto& [input, shape] : plan.at("one_image").items(kMaxNames)) info.one_image[input] = read_sizes(shape);
    }
    return record;
}

BuildRecord read_build_record(const Bundle& bundle, const std::string& library) {
    const std::string folder = bundle.folder->path.string(), again = ": ditedge build --engine " + folder + " --target " + library;
    const std::string name = "engines/" + library + "/build.json", place = folder + "/" + name;
    if (!OpenFile::exists(*bundle.folder, name)) fail_engine(folder + " has no plans for " + library + ", build them" + again);
    const std::string text = read_text(bundle.folder->descriptor.get(), name, place, kMaxRecordBytes, DITEDGE_ERROR_BUNDLE);
    check_signed(*bundle.folder, name, text, bundle.trusted);
    BuildRecord record = build_record_from_json(text, place);
    if (record.library != library) fail_bundle(record.place + ": the plans were built with " + record.library);
    if (record.bundle_sha256 != bundle.sha256)
        fail_bundle(record.place + ": the plans were built from another version of this bundle, build them again" + again);
    for (const auto& [graph, info] : bundle.manifest.graphs)
        if (has_plan(graph) && record.plans.count(graph) == 0) fail_bundle(record.place + ": the plan of graph '" + graph + "' is missing" + again);
    return record;
}

std::int32_t BuildRecord::profile_for(const std::string& graph,
                                      const std::map<std::string, std::vector<std::int64_t>>& shapes) const {
    const auto& exact = plans.at(graph).one_image;
    const auto is_bound = [&](const auto& tensor) {
        const auto found = shapes.find(tensor.first);
        return found != shapes.end() && found->second == tensor.second;
    };
    return !exact.empty() && std::all_of(exact.begin(), exact.end(), is_bound) ? 1 : 0;
}

void BuildRecord::check_shape(const std::string& graph, const std::string& input,
                              const std::vector<std::int64_t>& shape) const {
    const auto found = plans.at(graph).profile.find(input);
    if (found == plans.at(graph).profile.end()) return;
    const ShapeRange& range = found->second;
    bool inside = shape.size() == range.min.size();
    for (std::size_t i = 0; inside && i < shape.size(); ++i) inside = range.min[i] <= shape[i] && shape[i] <= range.max[i];
    if (!inside)
        fail_request(plan_name(graph) + ": input " + input + " is " + listed(shape) + ", and the plan was built for " +
                     listed(range.min) + " to " + listed(range.max) + ": use a sampler with fewer slots, fewer classes at a "
                     "time, or build again (--max-rows)");
}

}  // namespace ditedge
