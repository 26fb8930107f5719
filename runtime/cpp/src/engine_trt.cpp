#include "engine_trt.hpp"

#include <algorithm>
#include <cstdlib>

#include "error.hpp"
#include "shared_library.hpp"

namespace ditedge {
namespace {

#ifdef TRT_MAJOR_RTX
constexpr int kHeadersMajor = TRT_MAJOR_RTX;
#else
constexpr int kHeadersMajor = NV_TENSORRT_MAJOR;
#endif

Cuda load_cuda() {
    const SharedLibrary library =
        open_shared_library("the CUDA runtime", "", "DITEDGE_CUDART", {"libcudart.so.13", "libcudart.so.12", "libcudart.so"});
    Cuda cuda;
#define DITEDGE_CUDA_LOAD(name) cuda.name = library.function<decltype(&cuda##name)>("cuda" #name);
    DITEDGE_CUDA_CALLS(DITEDGE_CUDA_LOAD)
#undef DITEDGE_CUDA_LOAD
    return cuda;
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

Gpu::Gpu(const EngineOptions& options) : device_(options.device) {
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
    int major = 0, minor = 0;
    check(cuda.DeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_), "cudaDeviceGetAttribute");
    check(cuda.DeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device_), "cudaDeviceGetAttribute");
    const std::string capability = "sm" + std::to_string(major) + std::to_string(minor);
    if (!record.capabilities.empty() && !contains(record.capabilities, capability))
        fail_engine(record.place + ": the plans were built for other GPUs than this one, which is " + capability + again);
    if (contains(record.flags, "STRIP_PLAN")) fail_engine(record.place + ": the plans were built without weights" + again);
}

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
}

void Plan::refused(const std::string& what) const { fail_engine(path_ + " " + what + gpu_.complaints.last()); }

std::size_t Plan::scratch_bytes() const {
    return static_cast<std::size_t>(std::max<std::int64_t>(0, engine_->getDeviceMemorySizeV2()));
}

std::unique_ptr<nvinfer1::IExecutionContext> Plan::context(cudaStream_t stream, void* scratch, std::size_t bytes) {
    constexpr auto strategy = nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED;
#ifdef TRT_MAJOR_RTX  // compiles kernels on the device: in the background, a captured graph would keep the slow ones
    const std::unique_ptr<nvinfer1::IRuntimeConfig> config(engine_->createRuntimeConfig());
    if (config == nullptr) refused("has no runtime configuration");
    config->setExecutionContextAllocationStrategy(strategy);
    config->setDynamicShapesKernelSpecializationStrategy(nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER);
    std::unique_ptr<nvinfer1::IExecutionContext> context(engine_->createExecutionContext(config.get()));
#else
    std::unique_ptr<nvinfer1::IExecutionContext> context(engine_->createExecutionContext(strategy));
#endif
    if (context == nullptr) refused("cannot be given an execution context");
    // Only the first context of an engine gets profile 0 by itself.
    if (context->getOptimizationProfile() < 0 && !context->setOptimizationProfileAsync(0, stream)) refused("has no profile");
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

void Plan::enqueue(nvinfer1::IExecutionContext& context, cudaStream_t stream) const {
    if (!context.enqueueV3(stream)) refused("cannot be enqueued");
}

}  // namespace ditedge
