#include "engine_trt.hpp"

#include <algorithm>
#include <cstdlib>

#include "error.hpp"
#include "kernels.hpp"
#include "shared_library.hpp"

namespace ditedge {
namespace {

#ifdef TRT_MAJOR_RTX
constexpr int kHeadersMajor = TRT_MAJOR_RTX;
#else
constexpr int kHeadersMajor = NV_TENSORRT_MAJOR;
#endif

Cuda calls_of(const SharedLibrary& library) {
    Cuda cuda;
#define DITEDGE_CUDA_LOAD(name) cuda.name = library.function<decltype(&cuda##name)>("cuda" #name);
    DITEDGE_CUDA_CALLS(DITEDGE_CUDA_LOAD)
#undef DITEDGE_CUDA_LOAD
    return cuda;
}

// "12.4": what the driver is for, by any runtime library; nothing when there is no driver.
std::string driver_version(const Cuda& cuda) {
    int version = 0;
    if (cuda.DriverGetVersion(&version) != cudaSuccess || version == 0) return "";
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// The newest runtime library here that the driver runs: one that is newer answers every call with an error, and an older
// one beside it may do. Throws Error (engine) when there is none, Error (no device) when the driver is too old for all.
Cuda load_cuda() {
    std::vector<std::string> names = {"libcudart.so.13", "libcudart.so.12", "libcudart.so"};
    std::string refused;
    for (;;) {
        SharedLibrary library;
        try {
            library = open_shared_library("the CUDA runtime", "", "DITEDGE_CUDART", names);
        } catch (const Error&) {
            if (refused.empty()) throw;
            throw Error(DITEDGE_ERROR_NO_DEVICE, refused);
        }
        const Cuda cuda = calls_of(library);
        int devices = 0;
        const std::string driver = driver_version(cuda);
        if (cuda.GetDeviceCount(&devices) != cudaErrorInsufficientDriver || driver.empty()) return cuda;
        if (refused.empty())
            refused = "the NVIDIA driver, which is for CUDA " + driver + ", is too old for " + library.path +
                      ": update it, or install the runtime library of CUDA " + driver.substr(0, driver.find('.'));
        const auto tried = std::find(names.begin(), names.end(), library.path);
        if (tried == names.end() || tried + 1 == names.end()) throw Error(DITEDGE_ERROR_NO_DEVICE, refused);
        names.erase(names.begin(), tried + 1);
    }
}

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

}  // namespace

void Complaints::log(Severity severity, const char* message) noexcept {
    if (severity > Severity::kERROR) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    last_ = std::string(": ") + std::string(message).substr(0, 300);
}

std::string Complaints::last() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return last_;
}

Gpu::Gpu(const EngineOptions& options, std::deque<std::string>& said) : warnings(said), device_(options.device) {
    const SharedLibrary library = load_tensorrt(options);
    const int version = library.function<int (*)()>("getInferLibVersion")();  // 100300 is 10.3.0
    major_ = version / 10000;
    name_ = (options.engine == "tensorrt" ? "TensorRT " : "TensorRT-RTX ") + std::to_string(major_) + "." +
            std::to_string(version / 100 % 100) + " (" + library.path + ")";
    cuda = load_cuda();
    int devices = 0;
    const bool driver = cuda.GetDeviceCount(&devices) == cudaSuccess;
    if (!driver || device_ >= devices)
        throw Error(DITEDGE_ERROR_NO_DEVICE, "plans need an NVIDIA GPU and its driver, and there is no CUDA device " +
                                                 std::to_string(device_) + " here: the bundle also runs on onnxruntime");
    if (major_ != kHeadersMajor)
        fail_engine(name_ + " is loaded, and this libditedge was compiled with headers of version " +
                    std::to_string(kHeadersMajor) + ": compile it with the headers of this machine's library");
    use();
    const auto create = library.function<void* (*)(void*, std::int32_t)>("createInferRuntime_INTERNAL");
    runtime.reset(static_cast<nvinfer1::IRuntime*>(create(&complaints, NV_TENSORRT_VERSION)));
    if (runtime == nullptr) fail_engine(name_ + " cannot be started" + complaints.last());
}

void Gpu::use() const { check(cuda.SetDevice(device_), "cudaSetDevice"); }

void Gpu::check(cudaError_t error, const char* call) const {
    if (error == cudaSuccess) return;
    const std::string remedy = error == cudaErrorMemoryAllocation ? ": use a smaller batch" : "";
    fail_engine(std::string("CUDA: ") + call + " failed with " + cuda.GetErrorName(error) + remedy);
}

void Gpu::check_record(const BuildRecord& record) const {
    const std::string again = ": build them again on this machine";
    if (std::atoi(record.library_version.c_str()) != major_)
        fail_engine(record.place + ": built with version " + record.library_version + ", and this is " + name_ + again);
    if (!record.capabilities.empty() && !contains(record.capabilities, capability()))
        fail_engine(record.place + ": the plans were built for other GPUs than this one, which is " + capability() + again);
    if (contains(record.flags, "STRIP_PLAN")) fail_engine(record.place + ": the plans were built without weights" + again);
}

int Gpu::attribute(cudaDeviceAttr which) const {
    int value = 0;
    check(cuda.DeviceGetAttribute(&value, which, device_), "cudaDeviceGetAttribute");
    return value;
}

std::string Gpu::capability() const {
    return "sm" + std::to_string(attribute(cudaDevAttrComputeCapabilityMajor)) + std::to_string(attribute(cudaDevAttrComputeCapabilityMinor));
}

std::string Gpu::model() const { return capability() + "-" + std::to_string(attribute(cudaDevAttrMultiProcessorCount)); }

Plan::Plan(Gpu& gpu, const Bundle& bundle, const BuildRecord& record, const std::string& graph)
    : gpu_(gpu), record_(record), graph_(graph), file_("engines/" + record.library + "/" + plan_name(graph)),
      path_((bundle.folder->path / file_).string()) {
    const OpenFile file(*bundle.folder, file_, record.plans.at(graph).plan,
                        ": does not match its hash in build.json: damaged or tampered with; build again");
    file.check();
    if (contains(record.flags, "VERSION_COMPATIBLE")) gpu.runtime->setEngineHostCodeAllowed(true);  // brings its own runtime
    const std::unique_ptr<Mapping> plan = file.map();
    engine_.reset(gpu.runtime->deserializeCudaEngine(plan->bytes().data(), plan->bytes().size()));
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
    }
    for (const TensorInfo& output : info.outputs)
        if (tensors_.count(output.name) == 0) refused("has no output '" + output.name + "'");
#ifdef TRT_MAJOR_RTX
    kernels_ = kernel_file(record.plans.at(graph).plan.sha256, gpu.model());
#endif
}

#ifdef TRT_MAJOR_RTX
// Kernels that a context compiles go to the engine's cache, which begins with those of earlier starts.
void Plan::compile_into(nvinfer1::IRuntimeConfig& config) {
    if (cache_ == nullptr && !kernels_.empty()) {
        cache_.reset(config.createRuntimeCache());
        kept_ = read_kernels(kernels_, gpu_.warnings);
        if (cache_ != nullptr && !kept_.empty() && !cache_->deserialize(kept_.data(), kept_.size())) kept_.clear();  // of another driver
    }
    if (cache_ != nullptr) config.setRuntimeCache(*cache_);
}

void Plan::keep() {
    const std::unique_ptr<nvinfer1::IHostMemory> compiled(cache_ != nullptr ? cache_->serialize() : nullptr);
    if (compiled == nullptr || compiled->size() == 0) return;
    const std::string_view kernels(static_cast<const char*>(compiled->data()), compiled->size());
    if (kernels == kept_) return;
    keep_kernels(kernels_, kernels, gpu_.warnings);
    kept_ = kernels;
}
#else
void Plan::keep() {}  // its kernels are in the plan
#endif

void Plan::refused(const std::string& what) const { fail_engine(path_ + " " + what + gpu_.complaints.last()); }

std::size_t Plan::scratch_bytes() const {
    return static_cast<std::size_t>(std::max<std::int64_t>(0, engine_->getDeviceMemorySizeV2()));
}

std::unique_ptr<nvinfer1::IExecutionContext> Plan::context(cudaStream_t stream, void* scratch, std::size_t bytes,
                                                            std::int32_t profile) {
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
    context->setDeviceMemoryV2(scratch, static_cast<std::int64_t>(bytes));
    return context;
}

void Plan::set_shape(nvinfer1::IExecutionContext& context, const std::string& input,
                     const std::vector<std::int64_t>& shape) const {
    if (tensors_.count(input) == 0) return;
    record_.check_shape(graph_, input, shape);
    nvinfer1::Dims dims{static_cast<std::int32_t>(shape.size()), {}};
    std::copy(shape.begin(), shape.end(), dims.d);
    if (!context.setInputShape(input.c_str(), dims)) refused("does not take this shape of " + input);
}

void Plan::set_address(nvinfer1::IExecutionContext& context, const char* tensor, void* address) const {
    if (tensors_.count(tensor) != 0 && !context.setTensorAddress(tensor, address))
        refused(std::string("does not take the address of ") + tensor);
}

bool Plan::capturable(nvinfer1::IExecutionContext& context, cudaStream_t stream) const { return asked(context, stream, 0); }

void Plan::enqueue(nvinfer1::IExecutionContext& context, cudaStream_t stream) const {
    if (!context.enqueueV3(stream)) refused("cannot be enqueued");
}

}  // namespace ditedge
