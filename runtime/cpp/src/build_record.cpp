#include "build_record.hpp"

#include <algorithm>

#include "json.hpp"
#include "manifest.hpp"

namespace ditedge {
namespace {

constexpr std::size_t kMaxNames = 1000;

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

std::map<std::string, ShapeRange> read_profile(const Field& field) {
    std::map<std::string, ShapeRange> profile;
    for (const auto& [input, range] : field.items(kMaxNames)) profile[input] = read_range(range);
    return profile;
}

bool inside(const ShapeRange& range, const std::vector<std::int64_t>& shape, std::size_t from = 0) {
    if (shape.size() + from != range.min.size()) return false;
    for (std::size_t i = 0; i < shape.size(); ++i)
        if (shape[i] < range.min[from + i] || shape[i] > range.max[from + i]) return false;
    return true;
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
        info.profile = read_profile(plan.at("profile"));
        if (plan.has("one_image"))
            for (const auto& [input, shape] : plan.at("one_image").items(kMaxNames)) info.one_image[input] = read_sizes(shape);
        if (plan.has("further"))
            for (const Field& profile : plan.at("further").elements(kMaxNames)) info.further.push_back(read_profile(profile));
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
    const PlanInfo& plan = plans.at(graph);
    const auto is_bound = [&](const auto& tensor) {
        const auto found = shapes.find(tensor.first);
        return found != shapes.end() && found->second == tensor.second;
    };
    if (!plan.one_image.empty() && std::all_of(plan.one_image.begin(), plan.one_image.end(), is_bound)) return 1;
    const auto takes = [&](const std::map<std::string, ShapeRange>& profile) {
        return std::all_of(profile.begin(), profile.end(), [&](const auto& range) {
            const auto found = shapes.find(range.first);
            return found == shapes.end() || inside(range.second, found->second);
        });
    };
    const auto fitting = std::find_if(plan.further.begin(), plan.further.end(), takes);
    if (takes(plan.profile) || fitting == plan.further.end()) return 0;
    return static_cast<std::int32_t>(fitting - plan.further.begin()) + (plan.one_image.empty() ? 1 : 2);
}

void BuildRecord::check_shape(const std::string& graph, std::int32_t profile, const std::string& input,
                              const std::vector<std::int64_t>& shape) const {
    const PlanInfo& plan = plans.at(graph);
    const std::int32_t before = plan.one_image.empty() ? 1 : 2;
    if (profile == 1 && before == 2) return;  // it was chosen because it is this shape's
    const auto& ranges = profile == 0 ? plan.profile : plan.further.at(static_cast<std::size_t>(profile - before));
    const auto found = ranges.find(input);
    if (found == ranges.end() || inside(found->second, shape)) return;
    fail_request(plan_name(graph) + ": input " + input + " is " + listed(shape) + ", and the plan was built for " +
                 listed(found->second.min) + " to " + listed(found->second.max) + ": use a sampler with fewer slots, fewer classes at a "
                 "time, or build again (--max-rows)");
}

void BuildRecord::check_size(const Size& latent, const TextInfo& text) const {
    const PlanInfo& plan = plans.at("step");
    std::vector<std::string> built;
    const auto said = [&](std::int64_t height, std::int64_t width) {
        return std::to_string(width * text.factor) + "x" + std::to_string(height * text.factor);
    };
    std::vector<const std::map<std::string, ShapeRange>*> profiles = {&plan.profile};
    for (const auto& profile : plan.further) profiles.push_back(&profile);
    for (const auto* profile : profiles) {
        const auto state = profile->find("state");
        if (state == profile->end() || state->second.max.size() != 5 || inside(state->second, {latent.height, latent.width}, 3)) return;
        built.push_back(said(state->second.max[3], state->second.max[4]));
    }
    std::string all;
    for (const std::string& size : built) all += (all.empty() ? "" : ", ") + size;
    fail_request("the plans were built for pictures of " + all + ", and not of " + said(latent.height, latent.width) + ": use --size " +
                 built[0] + ", or build with --size " + said(latent.height, latent.width));
}

}  // namespace ditedge
