// ONNX Runtime, found by dlopen, and a graph loaded into a session of it: for the host's loop (engine_ort.cpp), and for the
// device's on the CUDA provider (engine_ort_cuda.cpp).
#pragma once

#include <onnxruntime/onnxruntime_c_api.h>

#include "engine.hpp"

namespace ditedge {

constexpr const char* kCudaProvider = "CUDAExecutionProvider";

// Owns an object of ONNX Runtime's C API by its release function.
template <class T>
class Owned {
public:
    explicit Owned(void (*release)(T*)) : release_(release) {}
    Owned(const Owned&) = delete;
    Owned& operator=(const Owned&) = delete;
    ~Owned() {
        if (value_ != nullptr) release_(value_);
    }
    T* get() const { return value_; }
    T** fill() { return &value_; }

private:
    void (*release_)(T*);
    T* value_ = nullptr;
};

// The loaded library.
struct OrtLibrary {
    const OrtApi* api;
    OrtEnv* env;
    std::string version, path;
    bool exact_sums = true;  // of products of uint8 and int8
};

// One a process. Throws Error (engine) when it cannot be loaded, or another one is.
const OrtLibrary& ort_library(const std::string& wanted);
// The provider's full name, or nothing for the CPU. Throws Error (engine) when this ONNX Runtime does not have it.
std::string provider_name(const OrtApi* api, const std::string& provider);

// One loaded graph. Throws Error (engine).
class OrtGraph {
public:
    // stream: of a CUDA device, for the CUDA provider's work; null: one of its own.
    OrtGraph(const GraphBytes& bytes, const GraphInfo& info, const EngineOptions& options, bool keep_buffers, void* stream = nullptr);

    void ok(OrtStatus* status) const;
    bool has_input(const std::string& name) const { return std::find(inputs_.begin(), inputs_.end(), name) != inputs_.end(); }
    bool all_on(const std::string& provider) const { return places_ == "[" + provider + "]"; }  // every node
    // A view of the caller's memory, which is `memory`; a binding holds its own reference to it.
    void bind(OrtIoBinding* binding, const OrtMemoryInfo* memory, const Tensor& tensor, bool input) const;

    const OrtApi* const api;
    const std::string file;
    Owned<OrtSession> session;
    Owned<OrtRunOptions> run_options;

private:
    void set(OrtSessionOptions* settings, const char* key, const char* value) const;
    static void ORT_API_CALL keep_places(void* graph, OrtLoggingLevel, const char*, const char*, const char*, const char* message);
    void add_external(OrtSessionOptions* settings, const GraphBytes& bytes) const;
    void add_cuda(OrtSessionOptions* settings, const EngineOptions& options, void* stream) const;
    std::string add_provider(OrtSessionOptions* settings, const EngineOptions& options, void* stream);
    void check_tensors(const std::vector<TensorInfo>& promised, bool inputs);

    std::string places_;  // "[CUDAExecutionProvider], [CPUExecutionProvider]": where the nodes are
    std::vector<std::string> inputs_;
};

}  // namespace ditedge
