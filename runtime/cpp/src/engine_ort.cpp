// ONNX Runtime, found by dlopen: one library works with every ONNX Runtime from API 21 (1.21) on.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "engine_ort.hpp"
#include "error.hpp"
#include "processors.hpp"
#include "shared_library.hpp"

namespace ditedge {
namespace {

// What is asked of the library, whatever headers this was compiled with: later ones only add functions at the end.
constexpr int kApi = 21;
static_assert(ORT_API_VERSION >= kApi, "headers of ONNX Runtime 1.21 or later are needed");
constexpr int kLaterVersions = 40;  // minor versions after that which are looked for by name

// x [1, 4] uint8 MatMulInteger w [4, 1] int8, all 127 -> y int32, as an ONNX file: PROBE_GRAPH of runtime/loop/engine_ort.py.
constexpr char kProbeGraph[] =
    "\x08\x05:X\n\x18\n\x01x\n\x01w\x12\x01y\"\rMatMulInteger\x12\x01g*\x0f\x08\x04\x08\x01\x10\x03*\x04\x7f\x7f\x7f\x7f"
    "B\x01wZ\x13\n\x01x\x12\x0e\n\x0c\x08\x02\x12\x08\n\x02\x08\x01\n\x02\x08\x04"
    "b\x13\n\x01y\x12\x0e\n\x0c\x08\x06\x12\x08\n\x02\x08\x01\n\x02\x08\x01"
    "B\x04\n\x00\x10\n";

// glibc would keep what is freed, up to blocks of 32 MB, where others lie behind: twice the memory for large pictures.
// The same as return_large_blocks of runtime/loop/engine_ort.py; whoever set the threshold himself is left alone.
void return_large_blocks() {
#ifdef __GLIBC__
    static const bool done = std::getenv("MALLOC_MMAP_THRESHOLD_") != nullptr || mallopt(M_MMAP_THRESHOLD, 4 << 20) != 0;
    (void)done;
#endif
}

void check(const OrtApi* api, OrtStatus* status, const std::string& what) {
    if (status == nullptr) return;
    std::string message = api->GetErrorMessage(status);
    api->ReleaseStatus(status);
    fail_engine(what + ": " + message.substr(0, message.find('\n')).substr(0, 300));
}

// On x86 without VNNI, pairs of products are added in 16 bits, which end at 32767. The library is asked, not the processor.
bool sums_are_exact(const OrtApi* api, OrtEnv* env) {
    const auto ok = [&](OrtStatus* status) { check(api, status, "the probe of integer sums"); };
    Owned<OrtSessionOptions> settings(api->ReleaseSessionOptions);
    Owned<OrtSession> session(api->ReleaseSession);
    Owned<OrtMemoryInfo> memory(api->ReleaseMemoryInfo);
    Owned<OrtValue> x(api->ReleaseValue), y(api->ReleaseValue);
    ok(api->CreateSessionOptions(settings.fill()));
    ok(api->SetIntraOpNumThreads(settings.get(), 1));
    ok(api->CreateSessionFromArray(env, kProbeGraph, sizeof kProbeGraph - 1, settings.get(), session.fill()));
    ok(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, memory.fill()));
    std::uint8_t numbers[4] = {255, 255, 255, 255};
    std::int32_t sum = 0;
    const std::int64_t x_shape[] = {1, 4}, y_shape[] = {1, 1};
    ok(api->CreateTensorWithDataAsOrtValue(memory.get(), numbers, sizeof numbers, x_shape, 2, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, x.fill()));
    ok(api->CreateTensorWithDataAsOrtValue(memory.get(), &sum, sizeof sum, y_shape, 2, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, y.fill()));
    const char* const input = "x";
    const char* const output = "y";
    const OrtValue* const given = x.get();
    ok(api->Run(session.get(), nullptr, &input, &given, 1, &output, 1, y.fill()));
    return sum == 4 * 255 * 127;
}

OrtLibrary load_library(const std::string& wanted) {
    std::vector<std::string> names = {"libonnxruntime.so.1", "libonnxruntime.so"};
    // Debian and others name it by its minor version: the latest first.
    for (int minor = kApi + kLaterVersions; minor >= kApi; --minor)
        names.push_back("libonnxruntime.so.1." + std::to_string(minor));
    const SharedLibrary opened = open_shared_library("ONNX Runtime", wanted, "DITEDGE_ONNXRUNTIME", names);
    const OrtApiBase* base = opened.function<const OrtApiBase* (*)()>("OrtGetApiBase")();
    OrtLibrary library{base->GetApi(kApi), nullptr, base->GetVersionString(), opened.path};
    if (library.api == nullptr)
        fail_engine(opened.path + ": ONNX Runtime " + library.version + " is too old: version 1." + std::to_string(kApi) +
                    " or later is needed");
    check(library.api, library.api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "ditedge", &library.env), opened.path);
    library.exact_sums = sums_are_exact(library.api, library.env);
    return library;
}

ONNXTensorElementDataType element_type(Dtype dtype) {
    return dtype == Dtype::float32 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
           : dtype == Dtype::int64 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 : ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
}

}  // namespace

const OrtLibrary& ort_library(const std::string& wanted) {
    static std::mutex mutex;
    static const OrtLibrary* loaded = nullptr;  // one a process: two ONNX Runtimes in one process get in each other's way
    const std::lock_guard<std::mutex> lock(mutex);
    if (loaded == nullptr) loaded = new OrtLibrary(load_library(wanted));
    if (!wanted.empty() && wanted != loaded->path)
        fail_engine("ONNX Runtime is loaded from " + loaded->path + " already, not from " + wanted);
    return *loaded;
}

// Appending a provider that does not work is an error, but one that takes none of a graph's nodes leaves all of them to the CPU
// and says so in the log only.
std::string provider_name(const OrtApi* api, const std::string& provider) {
    if (provider == "cpu" || provider == "CPUExecutionProvider") return "";
    const std::string name = provider == "cuda" ? kCudaProvider : provider;
    char** available = nullptr;
    int count = 0;
    check(api, api->GetAvailableProviders(&available, &count), "the providers");
    bool found = false;
    std::string have;
    for (int i = 0; i < count; ++i) {
        found = found || name == available[i];
        have += (i == 0 ? "" : ", ") + std::string(available[i]);
    }
    check(api, api->ReleaseAvailableProviders(available, count), "the providers");
    if (!found) fail_engine("provider '" + provider + "' is not in this ONNX Runtime, which has: " + have);
    return name;
}

OrtGraph::OrtGraph(const GraphBytes& bytes, const GraphInfo& info, const EngineOptions& options, bool keep_buffers, void* stream)
    : api(ort_library(options.library).api), file(bytes.place), session(api->ReleaseSession), run_options(api->ReleaseRunOptions) {
    Owned<OrtSessionOptions> settings(api->ReleaseSessionOptions);
    ok(api->CreateSessionOptions(settings.fill()));
    ok(api->SetIntraOpNumThreads(settings.get(), thread_count(options.threads)));
    set(settings.get(), "session.intra_op.allow_spinning", options.spin ? "1" : "0");
    if (!ort_library(options.library).exact_sums) set(settings.get(), "session.x64quantprecision", "1");
    ok(api->SetSessionLogSeverityLevel(settings.get(), 3));
    ok(api->CreateRunOptions(run_options.fill()));
    // What a run has to say is in its status: a cancel writes nothing to the application's standard error.
    ok(api->RunOptionsSetRunLogSeverityLevel(run_options.get(), ORT_LOGGING_LEVEL_FATAL));
    if (!keep_buffers) {
        return_large_blocks();
        ok(api->DisableCpuMemArena(settings.get()));
        ok(api->DisableMemPattern(settings.get()));
    }
    const std::string provider = add_provider(settings.get(), options, stream);
    set(settings.get(), "session.load_model_format", "ONNX");
    add_external(settings.get(), bytes);
    ok(api->CreateSessionFromArray(ort_library(options.library).env, bytes.graph.data(), bytes.graph.size(), settings.get(), session.fill()));
    if (!provider.empty() && !places_.empty() && places_.find("[" + provider + "]") == std::string::npos)
        fail_engine(file + ": provider '" + options.provider + "' takes no node of this graph, so all of it would run on " +
                    (places_ == "[CPUExecutionProvider]" ? "the CPU: use cpu" : places_));
    check_tensors(info.inputs, true);
    check_tensors(info.outputs, false);
}

void OrtGraph::ok(OrtStatus* status) const { check(api, status, file); }

void OrtGraph::set(OrtSessionOptions* settings, const char* key, const char* value) const {
    ok(api->AddSessionConfigEntry(settings, key, value));
}

// Keeps the providers that ONNX Runtime says it has placed nodes on: "All nodes placed on [CPUExecutionProvider]. ..."
void ORT_API_CALL OrtGraph::keep_places(void* graph, OrtLoggingLevel, const char*, const char*, const char*, const char* message) {
    const char* found = std::strstr(message, "placed on [");
    const char* end = found != nullptr ? std::strchr(found, ']') : nullptr;
    if (end == nullptr) return;
    std::string& places = static_cast<OrtGraph*>(graph)->places_;
    const std::string place(found + std::strlen("placed on "), end + 1);
    if (places.find(place) == std::string::npos) places += (places.empty() ? "" : ", ") + place;
}

void OrtGraph::bind(OrtIoBinding* binding, const OrtMemoryInfo* memory, const Tensor& tensor, bool input) const {
    Owned<OrtValue> value(api->ReleaseValue);
    ok(api->CreateTensorWithDataAsOrtValue(memory, tensor.data, tensor.bytes(), tensor.shape.data(), tensor.shape.size(),
                                           element_type(tensor.dtype), value.fill()));
    ok(input ? api->BindInput(binding, tensor.name, value.get()) : api->BindOutput(binding, tensor.name, value.get()));
}

// Weights from memory: where the graph's file has no path, ONNX Runtime would look for them in the working folder.
void OrtGraph::add_external(OrtSessionOptions* settings, const GraphBytes& bytes) const {
    std::vector<const char*> names;
    std::vector<char*> data;
    std::vector<std::size_t> sizes;
    for (const auto& [location, content] : bytes.external) {
        names.push_back(location.c_str());
        data.push_back(const_cast<char*>(content.data()));  // read only
        sizes.push_back(content.size());
    }
    if (!names.empty()) ok(api->AddExternalInitializersFromFilesInMemory(settings, names.data(), data.data(), sizes.data(), names.size()));
}

// TensorFloat-32 has 10 bits: a float32 graph is to be one.
void OrtGraph::add_cuda(OrtSessionOptions* settings, const EngineOptions& options, void* stream) const {
    Owned<OrtCUDAProviderOptionsV2> cuda(api->ReleaseCUDAProviderOptions);
    ok(api->CreateCUDAProviderOptions(cuda.fill()));
    const std::string device = std::to_string(options.device);
    const char* const keys[] = {"device_id", "use_tf32"};
    const char* const values[] = {device.c_str(), options.tf32 ? "1" : "0"};
    ok(api->UpdateCUDAProviderOptions(cuda.get(), keys, values, 2));
    if (stream != nullptr) ok(api->UpdateCUDAProviderOptionsWithValue(cuda.get(), "user_compute_stream", stream));
    ok(api->SessionOptionsAppendExecutionProvider_CUDA_V2(settings, cuda.get()));
}

// Returns its full name, or nothing for the CPU.
std::string OrtGraph::add_provider(OrtSessionOptions* settings, const EngineOptions& options, void* stream) {
    const std::string name = provider_name(api, options.provider);
    if (name.empty()) return name;
    if (name == kCudaProvider) {
        add_cuda(settings, options, stream);
    } else {
        const std::string suffix = "ExecutionProvider";
        const bool ends = name.size() > suffix.size() && name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0;
        const std::string shorter = ends ? name.substr(0, name.size() - suffix.size()) : name;
        ok(api->SessionOptionsAppendExecutionProvider(settings, shorter.c_str(), nullptr, nullptr, 0));
    }
    ok(api->SetUserLoggingFunction(settings, keep_places, this));
    ok(api->SetSessionLogSeverityLevel(settings, ORT_LOGGING_LEVEL_VERBOSE));
    return name;
}

void OrtGraph::check_tensors(const std::vector<TensorInfo>& promised, bool inputs) {
    std::size_t count = 0;
    OrtAllocator* allocator = nullptr;  // the default one, which nobody frees
    ok(api->GetAllocatorWithDefaultOptions(&allocator));
    ok(inputs ? api->SessionGetInputCount(session.get(), &count) : api->SessionGetOutputCount(session.get(), &count));
    for (std::size_t i = 0; i < count; ++i) {
        char* text = nullptr;
        ok(inputs ? api->SessionGetInputName(session.get(), i, allocator, &text)
                  : api->SessionGetOutputName(session.get(), i, allocator, &text));
        const std::string name = text;
        ok(api->AllocatorFree(allocator, text));
        Owned<OrtTypeInfo> type(api->ReleaseTypeInfo);
        ok(inputs ? api->SessionGetInputTypeInfo(session.get(), i, type.fill())
                  : api->SessionGetOutputTypeInfo(session.get(), i, type.fill()));
        const OrtTensorTypeAndShapeInfo* tensor = nullptr;  // belongs to `type`; null when it is no tensor
        ok(api->CastTypeInfoToTensorInfo(type.get(), &tensor));
        const TensorInfo* info = nullptr;
        ONNXTensorElementDataType element = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        if (tensor != nullptr) {
            std::size_t rank = 0;
            ok(api->GetTensorElementType(tensor, &element));
            ok(api->GetDimensionsCount(tensor, &rank));
            std::vector<std::int64_t> shape(rank);
            ok(api->GetDimensions(tensor, shape.data(), rank));
            info = find_tensor(promised, name, shape);
        }
        if (info == nullptr || element_type(info->dtype) != element)
            fail_engine(file + ": tensor '" + name + "' is not the one that the manifest describes");
        if (inputs) inputs_.push_back(name);
    }
    if (!inputs && count != promised.size()) fail_engine(file + ": outputs are not those of the manifest");
}

namespace {

class OrtEngine final : public Engine {
public:
    OrtEngine(const GraphBytes& bytes, const GraphInfo& info, const EngineOptions& options, bool keep_buffers)
        : graph_(bytes, info, options, keep_buffers), api_(graph_.api), memory_(api_->ReleaseMemoryInfo) {
        graph_.ok(api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, memory_.fill()));
    }

    void run(const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs) override {
        Owned<OrtIoBinding> binding(api_->ReleaseIoBinding);
        graph_.ok(api_->CreateIoBinding(graph_.session.get(), binding.fill()));
        for (const Tensor& input : inputs)
            if (graph_.has_input(input.name)) graph_.bind(binding.get(), memory_.get(), input, true);
        for (const Tensor& output : outputs) graph_.bind(binding.get(), memory_.get(), output, false);
        OrtStatus* const status = api_->RunWithBinding(graph_.session.get(), graph_.run_options.get(), binding.get());
        if (status != nullptr && std::strstr(api_->GetErrorMessage(status), "terminate flag") != nullptr) {
            api_->ReleaseStatus(status);
            fail_cancelled("within " + graph_.file.substr(graph_.file.rfind('/') + 1));
        }
        graph_.ok(status);
        graph_.ok(api_->SynchronizeBoundOutputs(binding.get()));
    }

    void interrupt(bool stop) override {  // sets one flag, which is looked at between the nodes of a graph
        OrtRunOptions* const options = graph_.run_options.get();
        graph_.ok(stop ? api_->RunOptionsSetTerminate(options) : api_->RunOptionsUnsetTerminate(options));
    }

private:
    OrtGraph graph_;
    const OrtApi* const api_;
    Owned<OrtMemoryInfo> memory_;
};

}  // namespace

std::unique_ptr<Engine> open_ort_engine(const GraphBytes& bytes, const GraphInfo& info,
                                        const EngineOptions& options, bool keep_buffers) {
    return std::make_unique<OrtEngine>(bytes, info, options, keep_buffers);
}

}  // namespace ditedge
