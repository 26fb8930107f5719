// The plans of a bundle on one GPU, or its own graphs on ONNX Runtime there (runtime/loop/device.py).
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <memory>

#include "device_memory.hpp"
#include "plan.hpp"

namespace ditedge {

// What all runs of a session share. warnings: where it says what does not stop it.
struct Device {
    Device(const Bundle& opened, std::unique_ptr<PlanLibrary> engine, const EngineOptions& options, std::deque<std::string>& warnings)
        : bundle(opened), library(std::move(engine)), gpu(options.device, library->needing(), library->instead(), warnings),
          record(library->start(gpu, bundle)), stream(gpu), memory(gpu) {
        for (const auto& [graph, info] : bundle.manifest.graphs) {
            if (!has_plan(graph)) continue;
            plans[graph] = library->load(gpu, bundle, record, graph, stream.get());
            scratch_bytes = std::max(scratch_bytes, plans[graph]->scratch_bytes());
        }
        graphs = options.cuda_graph && plans.at("step")->capturable();
        scratch = memory.device(scratch_bytes);
    }
    // The plan's profile for inputs and outputs of these shapes; tensors that it does not have are passed over.
    std::int32_t profile_of(const std::string& graph, const std::vector<Tensor>& tensors) const {
        std::map<std::string, std::vector<std::int64_t>> shapes;
        for (const Tensor& tensor : tensors) shapes[tensor.name] = tensor.shape;
        return record.profile_for(graph, shapes);
    }
    // A context of that profile, with these shapes.
    std::unique_ptr<Context> context(const std::string& graph, const std::vector<Tensor>& tensors) const {
        std::unique_ptr<Context> context = plans.at(graph)->context(stream.get(), profile_of(graph, tensors));
        context->set_memory(scratch, scratch_bytes);
        for (const Tensor& tensor : tensors) context->set_shape(tensor.name, tensor.shape);
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
    const std::unique_ptr<PlanLibrary> library;
    const Gpu gpu;
    const BuildRecord record;
    Stream stream;
    Memory memory;
    bool graphs = false;  // whether work is captured
    std::map<std::string, std::unique_ptr<Plan>> plans;
    std::size_t scratch_bytes = kAlignment;
    char* scratch = nullptr;  // never moved: captured graphs hold its address
};

}  // namespace ditedge
