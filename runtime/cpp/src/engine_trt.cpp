// TensorRT or TensorRT-RTX, found by dlopen, and plans on it: the only file that has their headers.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <set>

#include "error.hpp"
#include "kernels.hpp"
#include "plan.hpp"
#include "shared_library.hpp"

namespace ditedge {
namespace {

static_assert(kSuccess == ::cudaSuccess && kOutOfMemory == ::cudaErrorMemoryAllocation && kDriverTooOld == ::cudaErrorInsufficientDriver &&
              kNotReady == ::cudaErrorNotReady && kDefaultDirection == ::cudaMemcpyDefault && kThreadLocal == ::cudaStreamCaptureModeThreadLocal &&
              kNonBlocking == cudaStreamNonBlocking && kWithoutTimes == cudaEventDisableTiming);
static_assert(kMultiprocessors == ::cudaDevAttrMultiProcessorCount && kCapabilityMajor == ::cudaDevAttrComputeCapabilityMajor &&
              kCapabilityMinor == ::cudaDevAttrComputeCapabilityMinor && std::is_same_v<cudaStream_t, ::cudaStream_t> &&
              std::is_same_v<cudaEvent_t, ::cudaEvent_t> && std::is_same_v<cudaGraph_t, ::cudaGraph_t> &&
              std::is_same_v<cudaGraphExec_t, ::cudaGraphExec_t>);

#ifdef TRT_MAJOR_RTX
constexpr int kHeadersMajor = TRT_MAJOR_RTX;
#else
constexpr int kHeadersMajor = NV_TENSORRT_MAJOR;
#endif

SharedLibrary load_tensorrt(const EngineOptions& options) {
    if (options.engine == "tensorrt-rtx")
        return open_shared_library("TensorRT-RTX", options.library, "DITEDGE_TENSORRT",
                                   {"libtensorrt_rtx.so.1", "libtensorrt_rtx.so"});
    return open_shared_library("TensorRT", options.library, "DITEDGE_TENSORRT",
                               {"libnvinfer.so." + std::to_string(kHeadersMajor), "libnvinfer.so"});
}

nvinfer1::DataType element_type(Dtype dtype) {
    return dtype == Dtype::float32 ? nvinfer1::DataType::kFLOAT
           : dtype == Dtype::int64 ? nvinfer1::DataType::kINT64 : nvinfer1::DataType::kUINT8;
}

bool contains(const std::vector<std::string>& names, const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
}

// Headers that know the question: those of TensorRT-RTX, of some versions.
template <class Execution>
auto asked(Execution& context, cudaStream_t stream, int) -> decltype(context.isStreamCapturable(stream)) {
    return context.isStreamCapturable(stream);
}
template <class Execution>
bool asked(Execution&, cudaStream_t, long) {
    return true;
}

// Keeps what TensorRT complains of, for the error that follows. TensorRT calls it from any thread.
class Complaints final : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* message) noexcept override {
        if (severity > Severity::kERROR) return;
        const std::lock_guard<std::mutex> lock(mutex_);
        last_ = std::string(": ") + std::string(message).substr(0, 300);
    }
    std::string last() const {  // ": what it said", or nothing
        const std::lock_guard<std::mutex> lock(mutex_);
        return last_;
    }

private:
    mutable std::mutex mutex_;
    std::string last_;
};

// The library. One of another major version than the headers that this was compiled with is refused: the classes' layouts
// differ, and TensorRT itself would not notice. It creates a runtime without a driver, too, and then crashes: `start` has a Gpu.
class TensorRt final : public PlanLibrary {
public:
    explicit TensorRt(const EngineOptions& options) : engine_(options.engine), library_(load_tensorrt(options)) {
        const int version = library_.function<int (*)()>("getInferLibVersion")();  // 100300 is 10.3.0
        major_ = version / 10000;
        name_ = (engine_ == "tensorrt" ? "TensorRT " : "TensorRT-RTX ") + std::to_string(major_) + "." +
                std::to_string(version / 100 % 100) + " (" + library_.path + ")";
    }
    std::string needing() const override { return "plans need"; }
    std::string instead() const override { return "the bundle also runs on onnxruntime"; }
    BuildRecord start(const Gpu& gpu, const Bundle& bundle) override;
    std::unique_ptr<Plan> load(const Gpu& gpu, const Bundle& bundle, const BuildRecord& record, const std::string& graph, cudaStream_t) override;

    Complaints complaints;
    std::unique_ptr<nvinfer1::IRuntime> runtime;

private:
    void check_record(const BuildRecord& record, const Gpu& gpu) const;  // throws Error (engine): made for another library or GPU

    const std::string engine_;
    const SharedLibrary library_;
    int major_ = 0;
    std::string name_;  // "TensorRT 10.3 (libnvinfer.so.10)"
};

// One deserialised plan.
class TrtPlan final : public Plan {
public:
    // Hashes the file before TensorRT sees it; opened once, below the bundle's folder. Throws Error (bundle, engine).
    TrtPlan(TensorRt& library, const Gpu& gpu, const Bundle& bundle, const BuildRecord& record, const std::string& graph);

    std::size_t scratch_bytes() const override;
    bool capturable() const override { return !record_.weight_streaming_mb; }  // copied from host memory, which is not for a graph
    std::unique_ptr<Context> context(cudaStream_t stream, std::int32_t profile) override;
    void keep() override;

private:
    friend class TrtContext;
    [[noreturn]] void refused(const std::string& what) const;

    TensorRt& library_;
    const Gpu& gpu_;
    const BuildRecord& record_;
    std::string graph_;
    const std::string file_, path_;  // below the bundle's folder, for messages
    std::set<std::string> tensors_, inputs_;  // all, and those that are read
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
#ifdef TRT_MAJOR_RTX
    void compile_into(nvinfer1::IRuntimeConfig& config);

    std::string kernels_, kept_;  // the file of compiled kernels, and what it has
    std::unique_ptr<nvinfer1::IRuntimeCache> cache_;
#endif
};

class TrtContext final : public Context {
public:
    TrtContext(const TrtPlan& plan, std::unique_ptr<nvinfer1::IExecutionContext> context, std::int32_t profile)
        : plan_(plan), context_(std::move(context)), profile_(profile) {}
    void set_memory(void* scratch, std::size_t bytes) override { context_->setDeviceMemoryV2(scratch, static_cast<std::int64_t>(bytes)); }
    void set_shape(const std::string& input, const std::vector<std::int64_t>& shape) override {
        if (plan_.inputs_.count(input) == 0) return;
        plan_.record_.check_shape(plan_.graph_, profile_, input, shape);
        nvinfer1::Dims dims{static_cast<std::int32_t>(shape.size()), {}};
        std::copy(shape.begin(), shape.end(), dims.d);
        if (!context_->setInputShape(input.c_str(), dims)) plan_.refused("does not take this shape of " + input);
    }
    void set_address(const std::string& tensor, void* address) override {
        if (plan_.tensors_.count(tensor) != 0 && !context_->setTensorAddress(tensor.c_str(), address))
            plan_.refused("does not take the address of " + tensor);
    }
    // TensorRT-RTX can say so; of the others a capture that fails does.
    bool capturable(cudaStream_t stream) override { return asked(*context_, stream, 0); }
    void enqueue(cudaStream_t stream) override {
        if (!context_->enqueueV3(stream)) plan_.refused("cannot be enqueued");
    }

private:
    const TrtPlan& plan_;
    const std::unique_ptr<nvinfer1::IExecutionContext> context_;
    const std::int32_t profile_;
};

BuildRecord TensorRt::start(const Gpu& gpu, const Bundle& bundle) {
    if (major_ != kHeadersMajor)
        fail_engine(name_ + " is loaded, and this libditedge was compiled with headers of version " +
                    std::to_string(kHeadersMajor) + ": compile it with the headers of this machine's library");
    const auto create = library_.function<void* (*)(void*, std::int32_t)>("createInferRuntime_INTERNAL");
    runtime.reset(static_cast<nvinfer1::IRuntime*>(create(&complaints, NV_TENSORRT_VERSION)));
    if (runtime == nullptr) fail_engine(name_ + " cannot be started" + complaints.last());
    BuildRecord record = read_build_record(bundle, engine_);
    check_record(record, gpu);
    return record;
}

std::unique_ptr<Plan> TensorRt::load(const Gpu& gpu, const Bundle& bundle, const BuildRecord& record, const std::string& graph, cudaStream_t) {
    return std::make_unique<TrtPlan>(*this, gpu, bundle, record, graph);
}

void TensorRt::check_record(const BuildRecord& record, const Gpu& gpu) const {
    const std::string again = ": build them again on this machine";
    if (std::atoi(record.library_version.c_str()) != major_)
        fail_engine(record.place + ": built with version " + record.library_version + ", and this is " + name_ + again);
    if (!record.capabilities.empty() && !contains(record.capabilities, gpu.capability()))
        fail_engine(record.place + ": the plans were built for other GPUs than this one, which is " + gpu.capability() + again);
    if (contains(record.flags, "STRIP_PLAN")) fail_engine(record.place + ": the plans were built without weights" + again);
}

TrtPlan::TrtPlan(TensorRt& library, const Gpu& gpu, const Bundle& bundle, const BuildRecord& record, const std::string& graph)
    : library_(library), gpu_(gpu), record_(record), graph_(graph), file_("engines/" + record.library + "/" + plan_name(graph)),
      path_((bundle.folder->path / file_).string()) {
    const OpenFile file(*bundle.folder, file_, record.plans.at(graph).plan,
                        ": does not match its hash in build.json: damaged or tampered with; build again");
    file.check();
    if (contains(record.flags, "VERSION_COMPATIBLE")) library.runtime->setEngineHostCodeAllowed(true);  // brings its own runtime
    const std::unique_ptr<Mapping> plan = file.map();
    engine_.reset(library.runtime->deserializeCudaEngine(plan->bytes().data(), plan->bytes().size()));
    file.check();
    const GraphInfo& info = bundle.manifest.graphs.at(graph);
    if (engine_ == nullptr) refused("cannot be loaded, build it again");
    if (record.weight_streaming_mb) {
        const std::int64_t budget = std::min(*record.weight_streaming_mb << 20, engine_->getStreamableWeightsSize());
        if (!engine_->setWeightStreamingBudgetV2(budget)) refused("cannot stream its weights");
    }
    for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
        const char* name = engine_->getIOTensorName(i);
        const bool input = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
        const nvinfer1::Dims shape = engine_->getTensorShape(name);
        const std::vector<std::int64_t> sizes(shape.d, shape.d + std::max(0, shape.nbDims));
        const TensorInfo* tensor = find_tensor(input ? info.inputs : info.outputs, name, sizes);
        if (tensor == nullptr || element_type(tensor->dtype) != engine_->getTensorDataType(name))
            refused(std::string("has a tensor '") + name + "' that is not the manifest's");
        tensors_.insert(name);
        if (input) inputs_.insert(name);
    }
    for (const TensorInfo& output : info.outputs)
        if (tensors_.count(output.name) == 0) refused("has no output '" + output.name + "'");
#ifdef TRT_MAJOR_RTX
    kernels_ = kernel_file(record.plans.at(graph).plan.sha256, gpu.model());
#endif
}

#ifdef TRT_MAJOR_RTX
// Kernels that a context compiles go to the engine's cache, which begins with those of earlier starts.
void TrtPlan::compile_into(nvinfer1::IRuntimeConfig& config) {
    if (cache_ == nullptr && !kernels_.empty()) {
        cache_.reset(config.createRuntimeCache());
        kept_ = read_kernels(kernels_, gpu_.warnings);
        if (cache_ != nullptr && !kept_.empty() && !cache_->deserialize(kept_.data(), kept_.size())) kept_.clear();  // of another driver
    }
    if (cache_ != nullptr) config.setRuntimeCache(*cache_);
}

void TrtPlan::keep() {
    const std::unique_ptr<nvinfer1::IHostMemory> compiled(cache_ != nullptr ? cache_->serialize() : nullptr);
    if (compiled == nullptr || compiled->size() == 0) return;
    const std::string_view kernels(static_cast<const char*>(compiled->data()), compiled->size());
    if (kernels == kept_) return;
    keep_kernels(kernels_, kernels, gpu_.warnings);
    kept_ = kernels;
}
#else
void TrtPlan::keep() {}  // its kernels are in the plan
#endif

void TrtPlan::refused(const std::string& what) const { fail_engine(path_ + " " + what + library_.complaints.last()); }

std::size_t TrtPlan::scratch_bytes() const {
    return static_cast<std::size_t>(std::max<std::int64_t>(0, engine_->getDeviceMemorySizeV2()));
}

std::unique_ptr<Context> TrtPlan::context(cudaStream_t stream, std::int32_t profile) {
    constexpr auto strategy = nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED;
#ifdef TRT_MAJOR_RTX  // compiles kernels on the device: in the background, a captured graph would keep the slow ones
    const std::unique_ptr<nvinfer1::IRuntimeConfig> config(engine_->createRuntimeConfig());
    if (config == nullptr) refused("has no runtime configuration");
    config->setExecutionContextAllocationStrategy(strategy);
    config->setDynamicShapesKernelSpecializationStrategy(nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER);
    compile_into(*config);
    std::unique_ptr<nvinfer1::IExecutionContext> context(engine_->createExecutionContext(config.get()));
#else
    std::unique_ptr<nvinfer1::IExecutionContext> context(engine_->createExecutionContext(strategy));
#endif
    if (context == nullptr) refused("cannot be given an execution context");
    // Only the first context of an engine gets profile 0 by itself.
    if (context->getOptimizationProfile() != profile && !context->setOptimizationProfileAsync(profile, stream))
        refused("has no profile " + std::to_string(profile));
    return std::make_unique<TrtContext>(*this, std::move(context), profile);
}

}  // namespace

std::unique_ptr<PlanLibrary> open_tensorrt(const EngineOptions& options) { return std::make_unique<TensorRt>(options); }

}  // namespace ditedge
