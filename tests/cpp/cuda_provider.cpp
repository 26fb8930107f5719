// ONNX Runtime ($REAL_ONNXRUNTIME) that has the CUDA provider, over the double of libcudart ($DITEDGE_CUDART): its CPU provider
// works instead. A run on the caller's stream is a piece of the double's work: nothing is computed when it is enqueued, and
// what was bound by its address is what is read and written. CUDA_PROVIDER=mixed: some nodes are on the CPU.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <onnxruntime/onnxruntime_c_api.h>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "gpu_double.hpp"

namespace {

struct Cuda {
    void* stream = nullptr;
    std::map<std::string, std::string> options;
};

struct Value {
    void* address;
    std::size_t bytes;
    std::vector<std::int64_t> shape;
    ONNXTensorElementDataType type;
};

struct Binding {
    const OrtSession* session;
    std::map<std::string, Value> inputs, outputs;
};

// A run that was enqueued: with the tensors of its binding at that time.
struct Enqueued {
    OrtSession* session;
    Binding bound;
};

struct Settings {
    const Cuda* cuda = nullptr;
    OrtLoggingFunction log = nullptr;
    void* logged_to = nullptr;
};

const OrtApi* real = nullptr;
OrtApi api;
std::mutex mutex;
std::map<const OrtSessionOptions*, Settings> settings;
std::map<const OrtSession*, Cuda> sessions;
std::set<const OrtMemoryInfo*> memories;  // of the device
std::map<const OrtValue*, Value> values;  // there
std::map<const OrtIoBinding*, Binding> bindings;
std::set<const OrtRunOptions*> going_on;
char cuda_name[] = "CUDAExecutionProvider", cpu_name[] = "CPUExecutionProvider";
char* names[] = {cuda_name, cpu_name};

using Status = OrtStatus*;
using Lock = std::lock_guard<std::mutex>;

bool mixed() {
    const char* kind = std::getenv("CUDA_PROVIDER");
    return kind != nullptr && std::strcmp(kind, "mixed") == 0;
}

Status failed(const std::string& what) { return real->CreateStatus(ORT_FAIL, ("the double: " + what).c_str()); }

Status ORT_API_CALL available(char*** providers, int* count) noexcept { return *providers = names, *count = 2, nullptr; }
Status ORT_API_CALL release_available(char**, int) noexcept { return nullptr; }

Status ORT_API_CALL create_options(OrtCUDAProviderOptionsV2** options) noexcept {
    *options = reinterpret_cast<OrtCUDAProviderOptionsV2*>(new Cuda());
    return nullptr;
}
void ORT_API_CALL release_options(OrtCUDAProviderOptionsV2* options) noexcept { delete reinterpret_cast<Cuda*>(options); }
Status ORT_API_CALL update_options(OrtCUDAProviderOptionsV2* options, const char* const* keys, const char* const* given, size_t count) noexcept {
    for (size_t i = 0; i < count; ++i) reinterpret_cast<Cuda*>(options)->options[keys[i]] = given[i];
    return nullptr;
}
Status ORT_API_CALL update_with_value(OrtCUDAProviderOptionsV2* options, const char* key, void* value) noexcept {
    if (std::strcmp(key, "user_compute_stream") != 0) return failed(std::string("no such option: ") + key);
    reinterpret_cast<Cuda*>(options)->stream = value;
    return nullptr;
}
Status ORT_API_CALL append_cuda(OrtSessionOptions* options, const OrtCUDAProviderOptionsV2* cuda) noexcept {
    const Lock lock(mutex);
    const Cuda& given = *reinterpret_cast<const Cuda*>(cuda);
    if (given.options.at("use_tf32") != "0") return failed("TF32 is on");
    settings[options].cuda = new Cuda(given);
    return nullptr;
}
Status ORT_API_CALL set_log(OrtSessionOptions* options, OrtLoggingFunction log, void* to) noexcept {
    const Lock lock(mutex);
    settings[options].log = log, settings[options].logged_to = to;
    return nullptr;
}
Status ORT_API_CALL set_severity(OrtSessionOptions* options, int level) noexcept {
    const Lock lock(mutex);  // what the CPU's provider says is of no interest where the other one's is asked for
    return settings[options].cuda != nullptr ? nullptr : real->SetSessionLogSeverityLevel(options, level);
}
void ORT_API_CALL release_settings(OrtSessionOptions* options) noexcept {
    const Lock lock(mutex);
    delete settings[options].cuda;
    settings.erase(options);
    real->ReleaseSessionOptions(options);
}

Status ORT_API_CALL create_session(const OrtEnv* env, const void* bytes, size_t size, const OrtSessionOptions* options, OrtSession** session) noexcept {
    const Status status = real->CreateSessionFromArray(env, bytes, size, options, session);
    const Lock lock(mutex);
    const auto found = settings.find(options);
    if (status != nullptr || found == settings.end() || found->second.cuda == nullptr) return status;
    sessions[*session] = *found->second.cuda;
    const auto say = [&](const char* text) { found->second.log(found->second.logged_to, ORT_LOGGING_LEVEL_VERBOSE, "", "", "", text); };
    say(mixed() ? "Node(s) placed on [CUDAExecutionProvider]. Number of nodes: 7" : "All nodes placed on [CUDAExecutionProvider]. Number of nodes: 9");
    if (mixed()) say("Node(s) placed on [CPUExecutionProvider]. Number of nodes: 2");
    return nullptr;
}
void ORT_API_CALL release_session(OrtSession* session) noexcept {
    const Lock lock(mutex);
    sessions.erase(session);
    real->ReleaseSession(session);
}

Status ORT_API_CALL create_memory(const char* name, OrtAllocatorType type, int device, OrtMemType kind, OrtMemoryInfo** memory) noexcept {
    if (std::strcmp(name, "Cuda") != 0) return real->CreateMemoryInfo(name, type, device, kind, memory);
    if (type != OrtDeviceAllocator || device != 0 || kind != OrtMemTypeDefault) return failed("memory of another kind");
    const Status status = real->CreateCpuMemoryInfo(type, kind, memory);
    const Lock lock(mutex);
    memories.insert(*memory);
    return status;
}
void ORT_API_CALL release_memory(OrtMemoryInfo* memory) noexcept {
    const Lock lock(mutex);
    memories.erase(memory);
    real->ReleaseMemoryInfo(memory);
}
Status ORT_API_CALL create_value(const OrtMemoryInfo* memory, void* data, size_t bytes, const std::int64_t* shape, size_t rank,
                                 ONNXTensorElementDataType type, OrtValue** value) noexcept {
    const Status status = real->CreateTensorWithDataAsOrtValue(memory, data, bytes, shape, rank, type, value);
    const Lock lock(mutex);
    if (status == nullptr && memories.count(memory) != 0) values[*value] = {data, bytes, {shape, shape + rank}, type};
    return status;
}
void ORT_API_CALL release_value(OrtValue* value) noexcept {
    const Lock lock(mutex);
    values.erase(value);
    real->ReleaseValue(value);
}

Status ORT_API_CALL create_binding(OrtSession* session, OrtIoBinding** binding) noexcept {
    const Status status = real->CreateIoBinding(session, binding);
    const Lock lock(mutex);
    if (status == nullptr) bindings[*binding] = {session, {}, {}};
    return status;
}
void ORT_API_CALL release_binding(OrtIoBinding* binding) noexcept {
    const Lock lock(mutex);
    bindings.erase(binding);
    real->ReleaseIoBinding(binding);
}
Status bind(OrtIoBinding* binding, const char* name, const OrtValue* value, bool input) {
    const Lock lock(mutex);
    Binding& bound = bindings.at(binding);
    const auto found = values.find(value);
    const auto session = sessions.find(bound.session);
    if (session == sessions.end() || session->second.stream == nullptr) return nullptr;
    if (found == values.end()) return failed(std::string(name) + " is bound on the CPU");
    (input ? bound.inputs : bound.outputs)[name] = found->second;
    return nullptr;
}
Status ORT_API_CALL bind_input(OrtIoBinding* binding, const char* name, const OrtValue* value) noexcept {
    const Status status = bind(binding, name, value, true);
    return status != nullptr ? status : real->BindInput(binding, name, value);
}
Status ORT_API_CALL bind_output(OrtIoBinding* binding, const char* name, const OrtValue* value) noexcept {
    const Status status = bind(binding, name, value, false);
    return status != nullptr ? status : real->BindOutput(binding, name, value);
}

Status ORT_API_CALL add_entry(OrtRunOptions* options, const char* key, const char* value) noexcept {
    const Lock lock(mutex);
    if (std::strcmp(key, "disable_synchronize_execution_providers") == 0 && std::strcmp(value, "1") == 0) going_on.insert(options);
    return real->AddRunConfigEntry(options, key, value);
}
void ORT_API_CALL release_run_options(OrtRunOptions* options) noexcept {
    const Lock lock(mutex);
    going_on.erase(options);
    real->ReleaseRunOptions(options);
}

void complain(Status status) {
    if (status == nullptr) return;
    const std::string what = real->GetErrorMessage(status);
    real->ReleaseStatus(status);
    throw std::runtime_error(what);
}

void compute(void* data) {
    const std::unique_ptr<Enqueued> run(static_cast<Enqueued*>(data));
    OrtMemoryInfo* memory = nullptr;
    complain(real->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
    std::vector<const char*> input_names, output_names;
    std::vector<OrtValue*> inputs, outputs;
    const auto make = [&](const auto& tensors, auto& of_names, auto& made) {
        for (const auto& [name, value] : tensors) {
            of_names.push_back(name.c_str());
            complain(real->CreateTensorWithDataAsOrtValue(memory, value.address, value.bytes, value.shape.data(), value.shape.size(), value.type, &made.emplace_back()));
        }
    };
    make(run->bound.inputs, input_names, inputs), make(run->bound.outputs, output_names, outputs);
    const Status status = real->Run(run->session, nullptr, input_names.data(), inputs.data(), inputs.size(), output_names.data(), outputs.size(), outputs.data());
    for (const auto* side : {&inputs, &outputs})
        for (OrtValue* value : *side) real->ReleaseValue(value);
    real->ReleaseMemoryInfo(memory);
    complain(status);
}

Status ORT_API_CALL run(OrtSession* session, const OrtRunOptions* options, const OrtIoBinding* binding) noexcept {
    std::unique_lock<std::mutex> lock(mutex);
    const auto found = sessions.find(session);
    if (found == sessions.end() || found->second.stream == nullptr) return lock.unlock(), real->RunWithBinding(session, options, binding);
    const Binding& bound = bindings.at(binding);
    void* const stream = found->second.stream;
    const bool waits = going_on.count(options) == 0;
    if (bound.session != session) return failed("a binding of another session");
    auto work = std::make_unique<Enqueued>(Enqueued{session, bound});
    lock.unlock();
    const auto places = [](const std::map<std::string, Value>& tensors) {
        std::vector<DoublePlace> listed;
        for (const auto& [name, value] : tensors) listed.push_back({name.c_str(), value.address, value.bytes});
        return listed;
    };
    const std::vector<DoublePlace> inputs = places(work->bound.inputs), outputs = places(work->bound.outputs);
    void* const double_library = dlopen(std::getenv("DITEDGE_CUDART"), RTLD_NOW | RTLD_LOCAL);
    const auto enqueue = reinterpret_cast<DoubleRun*>(dlsym(double_library, "double_run"));
    const std::string graph = work->bound.outputs.begin()->first;
    return enqueue(graph.c_str(), stream, inputs.data(), inputs.size(), outputs.data(), outputs.size(), compute, work.release(), waits, mixed())
               ? nullptr : failed("see its report");
}

const OrtApiBase* real_base() {
    void* library = dlopen(std::getenv("REAL_ONNXRUNTIME"), RTLD_NOW | RTLD_LOCAL);
    return reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"))();
}

const OrtApi* ORT_API_CALL get_api(uint32_t version) noexcept {
    real = real_base()->GetApi(version);
    api = *real;
    api.GetAvailableProviders = available, api.ReleaseAvailableProviders = release_available;
    api.CreateCUDAProviderOptions = create_options, api.ReleaseCUDAProviderOptions = release_options;
    api.UpdateCUDAProviderOptions = update_options, api.UpdateCUDAProviderOptionsWithValue = update_with_value;
    api.SessionOptionsAppendExecutionProvider_CUDA_V2 = append_cuda;
    api.SetUserLoggingFunction = set_log, api.SetSessionLogSeverityLevel = set_severity, api.ReleaseSessionOptions = release_settings;
    api.CreateSessionFromArray = create_session, api.ReleaseSession = release_session;
    api.CreateMemoryInfo = create_memory, api.ReleaseMemoryInfo = release_memory;
    api.CreateTensorWithDataAsOrtValue = create_value, api.ReleaseValue = release_value;
    api.CreateIoBinding = create_binding, api.ReleaseIoBinding = release_binding;
    api.BindInput = bind_input, api.BindOutput = bind_output;
    api.AddRunConfigEntry = add_entry, api.ReleaseRunOptions = release_run_options;
    api.RunWithBinding = run;
    return &api;
}

const char* ORT_API_CALL get_version() noexcept { return real_base()->GetVersionString(); }

const OrtApiBase base = {get_api, get_version};

}  // namespace

extern "C" const OrtApiBase* OrtGetApiBase() noexcept { return &base; }
