// The seam between the loop on a device and the libraries behind it (runtime/loop/engine_trt.py): TensorRT's plans
// (engine_trt.cpp), or a bundle's own graphs on ONNX Runtime's CUDA provider (engine_ort_cuda.cpp).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "build_record.hpp"
#include "cuda.hpp"
#include "engine.hpp"

namespace ditedge {

// Shapes, addresses and scratch memory of one graph. Shapes stay until set again. Tensors that the graph does not have are
// passed over. Throws Error (engine).
class Context {
public:
    virtual ~Context() = default;
    virtual void set_memory(void* scratch, std::size_t bytes) = 0;  // at least Plan::scratch_bytes; contexts of one stream may share it
    // Of an input, and of an output for who cannot work it out. Throws Error (request) outside of the profile.
    virtual void set_shape(const std::string& tensor, const std::vector<std::int64_t>& shape) = 0;
    virtual void set_address(const std::string& tensor, void* address) = 0;  // a multiple of kAlignment; read by `enqueue`
    virtual bool capturable(cudaStream_t stream) = 0;                        // whether the library says that `enqueue` can be captured now
    virtual void enqueue(cudaStream_t stream) = 0;                           // returns at once
};

// One loaded graph, which outlives its contexts.
class Plan {
public:
    virtual ~Plan() = default;
    virtual std::size_t scratch_bytes() const = 0;  // that any shape of its profile needs
    virtual bool capturable() const = 0;            // whether its work may be captured into a CUDA graph
    virtual std::unique_ptr<Context> context(cudaStream_t stream, std::int32_t profile) = 0;  // of BuildRecord::profile_for
    virtual void keep() {}  // what the library compiled since it was loaded, for later starts; throws nothing
};

// What plans run on, which outlives them. Opened before CUDA is looked for: throws Error (engine) when it is missing.
class PlanLibrary {
public:
    virtual ~PlanLibrary() = default;
    virtual std::string needing() const = 0;  // for Gpu
    virtual std::string instead() const = 0;
    // Once, before any plan. Throws Error (engine, bundle) when the plans are not for this library and GPU.
    virtual BuildRecord start(const Gpu& gpu, const Bundle& bundle) = 0;
    virtual std::unique_ptr<Plan> load(const Gpu& gpu, const Bundle& bundle, const BuildRecord& record, const std::string& graph,
                                       cudaStream_t stream) = 0;
};

std::unique_ptr<PlanLibrary> open_tensorrt(const EngineOptions& options);  // with -DTENSORRT_ROOT
std::unique_ptr<PlanLibrary> open_ort_cuda(const EngineOptions& options);

}  // namespace ditedge
