// CUDA and TensorRT (or TensorRT-RTX), found by dlopen: a device, and plans on it. Every call that the loop for plans
// (device_loop.cpp) makes to either stands in this file or goes through the table `Cuda`.
#pragma once

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "build_record.hpp"
#include "engine.hpp"

namespace ditedge {

#define DITEDGE_CUDA_CALLS(CALL)                                                                                         \
    CALL(GetErrorName) CALL(GetDeviceCount) CALL(DriverGetVersion) CALL(SetDevice) CALL(DeviceGetAttribute) CALL(Malloc) \
    CALL(Free) CALL(MallocHost) CALL(FreeHost) CALL(MemcpyAsync) CALL(StreamCreateWithFlags) CALL(StreamDestroy)         \
    CALL(StreamBeginCapture) CALL(StreamEndCapture) CALL(EventCreateWithFlags) CALL(EventDestroy) CALL(EventRecord)      \
    CALL(EventQuery) CALL(GraphInstantiateWithFlags) CALL(GraphDestroy) CALL(GraphLaunch) CALL(GraphExecDestroy)

// cudaMalloc is `Malloc`, and so on: functions whose signatures CUDA 12 and 13 share.
struct Cuda {
#define DITEDGE_CUDA_POINTER(name) decltype(&cuda##name) name = nullptr;
    DITEDGE_CUDA_CALLS(DITEDGE_CUDA_POINTER)
#undef DITEDGE_CUDA_POINTER
};

// Keeps what TensorRT complains of, for the error that follows. TensorRT calls it from any thread.
class Complaints final : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* message) noexcept override;
    std::string last() const;  // ": what it said", or nothing

private:
    mutable std::mutex mutex_;
    std::string last_;
};

// One device and the libraries for it. Throws Error (engine) when a library is missing or of another major version than
// the headers that this was compiled with (the classes' layouts differ, and TensorRT itself would not notice), Error (no
// device) when there is none: TensorRT creates a runtime without a driver, too, and then crashes.
class Gpu {
public:
    Gpu(const EngineOptions& options, std::deque<std::string>& warnings);
    void use() const;                                      // this thread's CUDA calls go to this device
    void check(cudaError_t error, const char* call) const;  // throws Error (engine)
    void check_record(const BuildRecord& record) const;    // throws Error (engine): made for another library or GPU

    Cuda cuda;
    Complaints complaints;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
    std::deque<std::string>& warnings;  // what does not stop it
    std::string capability() const;     // "sm86"
    std::string model() const;          // "sm86-46": with the number of its multiprocessors

private:
    int attribute(cudaDeviceAttr which) const;
    int device_, major_ = 0;
    std::string name_;  // "TensorRT 10.3 (libnvinfer.so.10)"
};

// One deserialised plan.
class Plan {
public:
    // Hashes the file before TensorRT sees it; opened once, below the bundle's folder. Throws Error (bundle, engine).
    Plan(Gpu& gpu, const Bundle& bundle, const BuildRecord& record, const std::string& graph);

    std::size_t scratch_bytes() const;  // that any shape of its profile needs
    // With a profile of BuildRecord::profile_for. Work that is enqueued uses `scratch`, which contexts of one stream may share.
    std::unique_ptr<nvinfer1::IExecutionContext> context(cudaStream_t stream, void* scratch, std::size_t bytes, std::int32_t profile);
    // Throws Error (request) when the shape is outside of the profile. A tensor that the plan does not have is passed over.
    void set_shape(nvinfer1::IExecutionContext& context, const std::string& input, const std::vector<std::int64_t>& shape) const;
    void set_address(nvinfer1::IExecutionContext& context, const char* tensor, void* address) const;
    // Whether the library says that `enqueue` can be captured now. TensorRT-RTX can say so; of the others a capture that fails does.
    bool capturable(nvinfer1::IExecutionContext& context, cudaStream_t stream) const;
    void enqueue(nvinfer1::IExecutionContext& context, cudaStream_t stream) const;

    // What TensorRT-RTX compiled since it was loaded, for later starts. Throws nothing.
    void keep();

private:
    [[noreturn]] void refused(const std::string& what) const;

    Gpu& gpu_;
    const BuildRecord& record_;
    std::string graph_;
    const std::string file_, path_;  // below the bundle's folder, for messages
    std::set<std::string> tensors_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
#ifdef TRT_MAJOR_RTX
    void compile_into(nvinfer1::IRuntimeConfig& config);

    std::string kernels_, kept_;  // the file of compiled kernels, and what it has
    std::unique_ptr<nvinfer1::IRuntimeCache> cache_;
#endif
};

}  // namespace ditedge
