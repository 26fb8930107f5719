// The plans of a bundle on one GPU (runtime/loop/device.py).
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <memory>

#include "device_memory.hpp"

namespace ditedge {

using Context = std::unique_ptr<nvinfer1::IExecutionContext>;

// What all runs of a session share. warnings: where it says what does not stop it.
struct Device {
    Device(const Bundle& opened, const EngineOptions& options, std::deque<std::string>& warnings)
        : bundle(opened), gpu(options, warnings), record(read_build_record(bundle, options.engine)), stream(gpu), memory(gpu),
          graphs(options.cuda_graph && !record.weight_streaming_mb) {
        gpu.check_record(record);
        for (const auto& [graph, info] : bundle.manifest.graphs) {
            if (!has_plan(graph)) continue;
            plans[graph] = std::make_unique<Plan>(gpu, bundle, record, graph);
            scratch_bytes = std::max(scratch_bytes, plans[graph]->scratch_bytes());
        }
        scratch = memory.device(scratch_bytes);
    }
    // A context for inputs of these shapes; tensors that the plan does not have are passed over.
    Context context(const char* graph, const std::vector<Tensor>& inputs) const {
        Plan& plan = *plans.at(graph);
        std::map<std::string, std::vector<std::int64_t>> shapes;
        for (const Tensor& input : inputs) shapes[input.name] = input.shape;
        Context context = plan.context(stream.get(), scratch, scratch_bytes, record.profile_for(graph, shapes));
        for (const Tensor& input : inputs) plan.set_shape(*context, input.name, input.shape);
        return context;
    }
    // How many of `wanted` fit the largest first dimension that a plan was built for.
    std::int64_t at_most(const char* graph, const char* input, std::int64_t wanted) const {
        const auto found = record.plans.at(graph).profile.find(input);
        if (found == record.plans.at(graph).profile.end() || found->second.max.empty()) return wanted;
        return std::min(wanted, std::max<std::int64_t>(1, found->second.max[0]));
    }

    // Steps are enqueued one by one from here on.
    void no_graphs(const std::string& reason) {
        graphs = false;
        gpu.warnings.push_back("these plans cannot be captured as a CUDA graph: every step is enqueued anew, which is slower (" + reason + ")");
    }

    // What was compiled since the plans were loaded, for later starts. Nothing is enqueued.
    void keep() {
        for (const auto& plan : plans) plan.second->keep();
    }

    const Bundle& bundle;
    Gpu gpu;
    BuildRecord record;
    Stream stream;
    Memory memory;
    bool graphs;  // whether work is captured: streamed weights are copied from host memory, which is not for a graph
    std::map<std::string, std::unique_ptr<Plan>> plans;
    std::size_t scratch_bytes = kAlignment;
    char* scratch = nullptr;  // never moved: captured graphs hold its address
};

}  // namespace ditedge
