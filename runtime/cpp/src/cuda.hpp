// CUDA's runtime, found by dlopen: the calls that the loop on a device makes (runtime/loop/cuda.py). Its headers are not needed:
// handles are CUDA's own types, which nobody looks into, and numbers those of CUDA 12 and 13 (engine_trt.cpp compares them).
#pragma once

#include <cstddef>
#include <deque>
#include <string>

struct CUevent_st;
struct CUgraph_st;
struct CUgraphExec_st;
struct CUstream_st;

namespace ditedge {

using cudaEvent_t = CUevent_st*;
using cudaGraph_t = CUgraph_st*;
using cudaGraphExec_t = CUgraphExec_st*;
using cudaStream_t = CUstream_st*;

constexpr int kSuccess = 0, kOutOfMemory = 2, kDriverTooOld = 35, kNotReady = 600;  // cudaError_t
constexpr int kDefaultDirection = 4, kThreadLocal = 1;                              // cudaMemcpyKind, cudaStreamCaptureMode
constexpr unsigned kNonBlocking = 1, kWithoutTimes = 2;                             // flags of a stream, of an event
constexpr int kMultiprocessors = 16, kCapabilityMajor = 75, kCapabilityMinor = 76;  // cudaDeviceAttr

// cudaMalloc is `Malloc`, and so on, with its arguments: functions whose signatures CUDA 12 and 13 share. Each answers an error.
#define DITEDGE_CUDA_CALLS(CALL)                                                                                         \
    CALL(GetDeviceCount, int*) CALL(DriverGetVersion, int*) CALL(SetDevice, int) CALL(DeviceGetAttribute, int*, int, int) \
    CALL(Malloc, void**, std::size_t) CALL(Free, void*) CALL(MallocHost, void**, std::size_t) CALL(FreeHost, void*)      \
    CALL(MemcpyAsync, void*, const void*, std::size_t, int, cudaStream_t)                                                \
    CALL(StreamCreateWithFlags, cudaStream_t*, unsigned) CALL(StreamDestroy, cudaStream_t)                               \
    CALL(StreamBeginCapture, cudaStream_t, int) CALL(StreamEndCapture, cudaStream_t, cudaGraph_t*)                       \
    CALL(EventCreateWithFlags, cudaEvent_t*, unsigned) CALL(EventDestroy, cudaEvent_t)                                   \
    CALL(EventRecord, cudaEvent_t, cudaStream_t) CALL(EventQuery, cudaEvent_t)                                           \
    CALL(GraphInstantiateWithFlags, cudaGraphExec_t*, cudaGraph_t, unsigned long long) CALL(GraphDestroy, cudaGraph_t)   \
    CALL(GraphLaunch, cudaGraphExec_t, cudaStream_t) CALL(GraphExecDestroy, cudaGraphExec_t)

struct Cuda {
    const char* (*GetErrorName)(int) = nullptr;
#define DITEDGE_CUDA_POINTER(name, ...) int (*name)(__VA_ARGS__) = nullptr;
    DITEDGE_CUDA_CALLS(DITEDGE_CUDA_POINTER)
#undef DITEDGE_CUDA_POINTER
};

// One device and CUDA's library for it. Throws Error (engine) when that is missing, Error (no device) when there is none.
class Gpu {
public:
    // For the message without a device: who needs it ("plans need"), and what runs without it.
    Gpu(int device, const std::string& needing, const std::string& instead, std::deque<std::string>& warnings);
    void use() const;                              // this thread's CUDA calls go to this device
    void check(int error, const char* call) const;  // throws Error (engine)
    std::string capability() const;                // "sm86"
    std::string model() const;                     // "sm86-46": with the number of its multiprocessors

    const Cuda cuda;
    std::deque<std::string>& warnings;  // what does not stop it

private:
    int attribute(int which) const;
    const int device_;
};

}  // namespace ditedge
