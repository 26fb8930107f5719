// ONNX Runtime's CUDA provider behind the seam of plans (runtime/loop/engine_ort_cuda.py): a bundle's own graphs, always on the
// device. Tensors are bound by their addresses there, and the provider works on the loop's stream, which it does not stop at
// the end of a run where every node is on the device. It may allocate in any run, which a capture forbids.
// An input that the provider reads on the CPU would be copied when it is bound, and not at each run: Python asks and refuses (ONNX
// Runtime 1.23), and the C API of 1.21 has no such question. The inputs of our graphs are data of their first nodes, never shapes.
#include "engine_ort.hpp"
#include "error.hpp"
#include "plan.hpp"

namespace ditedge {
namespace {

constexpr std::int64_t kAny = 1 << 20;  // as large as anything that is asked of a plan

class OrtPlan final : public Plan {
public:
    OrtPlan(const GraphBytes& bytes, const GraphInfo& graph_info, const EngineOptions& options, cudaStream_t stream)
        : info(graph_info), graph(bytes, info, options, true, stream), memory(graph.api->ReleaseMemoryInfo) {
        graph.ok(graph.api->CreateMemoryInfo("Cuda", OrtDeviceAllocator, options.device, OrtMemTypeDefault, memory.fill()));
        // What a node on the CPU leaves in pinned memory is still being copied when a run returns that does not wait, and
        // the next run may write there.
        if (graph.all_on(kCudaProvider))
            graph.ok(graph.api->AddRunConfigEntry(graph.run_options.get(), "disable_synchronize_execution_providers", "1"));
    }
    std::size_t scratch_bytes() const override { return 0; }  // it allocates by itself, and keeps what it allocated
    bool capturable() const override { return false; }
    std::unique_ptr<Context> context(cudaStream_t stream, std::int32_t profile) override;

    const GraphInfo& info;
    const OrtGraph graph;
    Owned<OrtMemoryInfo> memory;
};

// Bindings of one graph, by the addresses in them: a run has few, because its steps take turns at a few places.
class OrtContext final : public Context {
public:
    explicit OrtContext(const OrtPlan& plan) : plan_(plan) {}
    void set_memory(void*, std::size_t) override {}  // it has its own
    void set_shape(const std::string& tensor, const std::vector<std::int64_t>& shape) override {
        if (shapes_[tensor] == shape) return;
        shapes_[tensor] = shape;
        bindings_.clear();
    }
    void set_address(const std::string& tensor, void* address) override { addresses_[tensor] = address; }
    bool capturable(cudaStream_t) override { return false; }
    void enqueue(cudaStream_t) override {
        std::unique_ptr<Owned<OrtIoBinding>>& binding = bindings_[addresses_];
        if (binding == nullptr) binding = bound();
        plan_.graph.ok(plan_.graph.api->RunWithBinding(plan_.graph.session.get(), plan_.graph.run_options.get(), binding->get()));
    }

private:
    std::unique_ptr<Owned<OrtIoBinding>> bound() {
        const OrtGraph& graph = plan_.graph;
        auto binding = std::make_unique<Owned<OrtIoBinding>>(graph.api->ReleaseIoBinding);
        graph.ok(graph.api->CreateIoBinding(graph.session.get(), binding->fill()));
        const auto bind = [&](const TensorInfo& tensor, std::vector<std::int64_t> shape, bool input) {
            graph.bind(binding->get(), plan_.memory.get(), {tensor.name.c_str(), tensor.dtype, std::move(shape), addresses_.at(tensor.name)}, input);
        };
        for (const TensorInfo& input : plan_.info.inputs)
            if (graph.has_input(input.name)) bind(input, shapes_.at(input.name), true);
        for (const TensorInfo& output : plan_.info.outputs) bind(output, shapes_.at(output.name), false);
        return binding;
    }

    const OrtPlan& plan_;
    std::map<std::string, std::vector<std::int64_t>> shapes_;
    std::map<std::string, void*> addresses_;
    std::map<std::map<std::string, void*>, std::unique_ptr<Owned<OrtIoBinding>>> bindings_;
};

std::unique_ptr<Context> OrtPlan::context(cudaStream_t, std::int32_t) { return std::make_unique<OrtContext>(*this); }

class OrtCuda final : public PlanLibrary {
public:
    explicit OrtCuda(const EngineOptions& options) : options_(options) { provider_name(ort_library(options.library).api, options.provider); }
    std::string needing() const override { return "provider '" + options_.provider + "' needs"; }
    std::string instead() const override { return "use cpu"; }
    // As of plans that were built for every size.
    BuildRecord start(const Gpu&, const Bundle& bundle) override {
        BuildRecord record;
        record.max_batch = kAny;
        for (const auto& graph : bundle.manifest.graphs) record.plans[graph.first];
        return record;
    }
    std::unique_ptr<Plan> load(const Gpu&, const Bundle& bundle, const BuildRecord&, const std::string& graph, cudaStream_t stream) override {
        std::unique_ptr<Plan> plan;
        bundle.with_graph(graph, [&](const GraphBytes& bytes) {
            plan = std::make_unique<OrtPlan>(bytes, bundle.manifest.graphs.at(graph), options_, stream);
        });
        return plan;
    }

private:
    const EngineOptions options_;
};

}  // namespace

std::unique_ptr<PlanLibrary> open_ort_cuda(const EngineOptions& options) { return std::make_unique<OrtCuda>(options); }

}  // namespace ditedge
