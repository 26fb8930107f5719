// A test double of libcudart and libnvinfer in one library: host memory behind the device pointers, ONNX Runtime behind
// the plans. libditedge loads it as it loads the real ones, by dlopen, and calls it through TensorRT's own headers.
//
// Stricter than a GPU, which would go on with wrong numbers: nothing runs when it is enqueued, but bit by bit while the
// host polls events. What a GPU would punish, or silently get wrong, is kept as `broken`, and every later call fails.
// With DOUBLE_ON_CUDA=libcudart.so.13 only libnvinfer's half is used, on real CUDA: see OnCuda.
// A plan is a text: {"onnx": path, "graph": name, "info": the manifest's, "profile", "one_image", "further": the record's,
// "factor": pixels of a picture per pixel of a latent, of a model that takes prompts, "scratch": bytes}.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "engine.hpp"
#include "error.hpp"
#include "gpu_double.hpp"
#include "tensorrt_stubs.hpp"

namespace {

constexpr std::uintptr_t kAlignment = 256;

struct Block {
    std::unique_ptr<char[]> room;
    std::size_t size;
    std::vector<bool> written;  // by work of the device
    bool pinned, live;
};

struct Call {
    std::function<void()> run;
    std::vector<const void*> uses;  // addresses of memory
};

struct Work {
    std::vector<Call> calls;
    std::uintptr_t event;  // that it completes, or 0
};

struct State {
    std::map<char*, Block> blocks;  // by aligned address; freed ones stay: their memory is never given out again
    std::map<std::uintptr_t, std::deque<Work>> streams;
    std::map<std::uintptr_t, std::vector<Call>> graphs;
    std::map<std::uintptr_t, bool> events;                    // whether their last record was passed
    std::map<std::uintptr_t, std::uintptr_t> recorded_in;     // stream
    std::uintptr_t handles = 1000;
    int devices = 1, version = NV_TENSORRT_VERSION, fail_after = -1;  // allocations until memory runs out
    bool capturable = true;  // whether contexts say that they can be captured
    int captures = std::getenv("DOUBLE_CAPTURES") != nullptr ? std::atoi(std::getenv("DOUBLE_CAPTURES")) : -1;  // until one is refused
    std::string broken;
    std::map<std::string, int> counts;  // by graph (and "GRAPH of one image"), copies by their way, "capture", "launch", "contexts"
    std::size_t longest_queue = 0;
} state;

std::recursive_mutex mutex;

// Capture is asked for in thread-local mode: other threads go on as they like.
thread_local std::uintptr_t capturing = 0;  // stream
thread_local std::vector<Call> captured;

struct Broken {};

// Like CUDA's own errors, the first one stays.
void demand(bool fine, const std::string& complaint) {
    if (state.broken.empty() && !fine) state.broken = complaint;
    if (!state.broken.empty()) throw Broken{};
}

template <class Body>
cudaError_t guarded(const Body& body) {
    const std::lock_guard<std::recursive_mutex> lock(mutex);
    try {
        body();
        return cudaSuccess;
    } catch (const cudaError_t error) {
        return error;
    } catch (const Broken&) {
        return cudaErrorIllegalAddress;
    } catch (const std::exception& error) {
        state.broken = error.what();
        return cudaErrorUnknown;
    }
}

template <class Body>
bool accepted(const Body& body) {
    return guarded(body) == cudaSuccess;
}

template <class Handle>
std::uintptr_t number(Handle handle) {
    return reinterpret_cast<std::uintptr_t>(handle);
}

template <class Handle>
void make_handle(Handle* handle) {
    state.handles += 8;
    *handle = reinterpret_cast<Handle>(state.handles);
}

void allocate(void** pointer, std::size_t size, bool pinned) {
    demand(capturing == 0, "allocation while capturing");
    demand(size > 0, "allocation of nothing");
    if (state.fail_after == 0) throw cudaErrorMemoryAllocation;
    if (state.fail_after > 0) --state.fail_after;
    std::unique_ptr<char[]> room(new char[size + 2 * kAlignment]);
    std::memset(room.get(), 0xFF, size + 2 * kAlignment);  // NaN as float32, -1 as int64
    char* address = room.get() + (kAlignment - number(room.get()) % kAlignment) % kAlignment;
    *pointer = address;
    state.blocks.erase(address);
    state.blocks.emplace(address, Block{std::move(room), size, std::vector<bool>(size), pinned, true});
}

bool is_used(const char* address, std::size_t size) {
    for (const auto& [stream, queue] : state.streams)
        for (const Work& work : queue)
            for (const Call& call : work.calls)
                for (const void* used : call.uses)
                    if (address <= used && used < address + size) return true;
    return false;
}

void release(void* pointer, bool pinned) {
    if (pointer == nullptr) return;
    const auto found = state.blocks.find(static_cast<char*>(pointer));
    demand(found != state.blocks.end() && found->second.live && found->second.pinned == pinned, "free of what is not allocated");
    demand(!is_used(found->first, found->second.size), "free of what enqueued work uses");
    found->second.live = false;
    std::memset(found->first, 0xFF, found->second.size);
}

// The live allocation that holds [address, address + size), and the place in it.
std::pair<Block*, std::size_t> find(const void* address, std::size_t size, const std::string& what) {
    auto found = state.blocks.upper_bound(static_cast<char*>(const_cast<void*>(address)));
    demand(found != state.blocks.begin(), what + ": address outside every allocation");
    --found;
    const auto at = static_cast<std::size_t>(static_cast<const char*>(address) - found->first);
    demand(at < found->second.size, what + ": address outside every allocation");
    demand(found->second.live, what + ": use after free");
    demand(at + size <= found->second.size, what + ": reaches beyond its allocation");
    return {&found->second, at};
}

void read(const void* address, std::size_t size, const std::string& what) {
    const auto [block, at] = find(address, size, what);
    const auto first = block->written.begin() + static_cast<std::ptrdiff_t>(at);
    demand(block->pinned || std::find(first, first + static_cast<std::ptrdiff_t>(size), false) == first + static_cast<std::ptrdiff_t>(size),
           what + ": read of memory never written");
}

void written(const void* address, std::size_t size, const std::string& what) {
    const auto [block, at] = find(address, size, what);
    std::fill_n(block->written.begin() + static_cast<std::ptrdiff_t>(at), size, true);
}

void enqueue(std::uintptr_t stream, std::vector<Call> calls, std::uintptr_t event = 0) {
    demand(state.streams.count(stream) != 0, "no such stream");
    if (capturing != 0) {
        demand(capturing == stream && event == 0, "an event or another stream while capturing");
        for (Call& call : calls) captured.push_back(std::move(call));
        return;
    }
    state.streams[stream].push_back({std::move(calls), event});
    state.longest_queue = std::max(state.longest_queue, state.streams[stream].size());
}

// Does the oldest piece of work of a stream.
void advance(std::uintptr_t stream) {
    const Work work = std::move(state.streams[stream].front());
    state.streams[stream].pop_front();
    for (const Call& call : work.calls) call.run();
    const auto& later = state.streams[stream];
    const bool again = std::any_of(later.begin(), later.end(), [&](const Work& other) { return other.event == work.event; });
    if (work.event != 0 && !again) state.events[work.event] = true;
}

struct Plan {
    std::string graph;
    std::vector<ditedge::TensorInfo> inputs, outputs;
    nlohmann::json profile, one_image, further;
    std::int64_t factor;
    std::size_t scratch;

    std::int32_t before() const { return one_image.empty() ? 1 : 2; }  // profiles before the further ones
    std::unique_ptr<ditedge::Engine> engine;

    const ditedge::TensorInfo* find(const std::string& name) const {
        for (const auto* side : {&inputs, &outputs})
            for (const ditedge::TensorInfo& tensor : *side)
                if (tensor.name == name) return &tensor;
        return nullptr;
    }
};

std::vector<ditedge::TensorInfo> tensors(const nlohmann::json& list) {
    std::vector<ditedge::TensorInfo> tensors;
    for (const auto& item : list) {
        const std::string dtype = item.at("dtype");
        ditedge::TensorInfo tensor{item.at("name"), dtype == "float32" ? ditedge::Dtype::float32 : dtype == "int64" ? ditedge::Dtype::int64 : ditedge::Dtype::uint8, {}};
        for (const auto& size : item.at("shape")) tensor.shape.push_back(size.is_string() ? -1 : size.get<std::int64_t>());
        tensors.push_back(tensor);
    }
    return tensors;
}

// An implementation behind its public interface.
template <class Interface, class Implementation>
struct Public final : Interface {
    template <class... Arguments>
    explicit Public(Arguments&&... arguments) : implementation(std::forward<Arguments>(arguments)...) {
        this->mImpl = &implementation;
    }
    Implementation implementation;
};

// The calls of the library that DOUBLE_ON_CUDA names; none without it.
struct RealCuda {
    decltype(&cudaMemcpyAsync) copy = nullptr;
    decltype(&cudaLaunchHostFunc) call = nullptr;
    decltype(&cudaMallocHost) allocate = nullptr;
    decltype(&cudaFreeHost) release = nullptr;

    RealCuda() {
        const char* path = std::getenv("DOUBLE_ON_CUDA");
        void* library = path != nullptr ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
        if (path != nullptr && library == nullptr) std::fprintf(stderr, "DOUBLE_ON_CUDA: %s\n", dlerror()), std::abort();
        if (library == nullptr) return;
        copy = reinterpret_cast<decltype(copy)>(dlsym(library, "cudaMemcpyAsync"));
        call = reinterpret_cast<decltype(call)>(dlsym(library, "cudaLaunchHostFunc"));
        allocate = reinterpret_cast<decltype(allocate)>(dlsym(library, "cudaMallocHost"));
        release = reinterpret_cast<decltype(release)>(dlsym(library, "cudaFreeHost"));
    }
};

const RealCuda& real_cuda() {
    static const RealCuda cuda;
    return cuda;
}

void succeed(cudaError_t status, const char* what) {
    if (status != cudaSuccess) throw std::runtime_error(std::string(what) + " answers " + std::to_string(status));
}

// The arithmetic of a context as work of a real stream: copies to pinned memory, a function of the host, a copy back. All
// are asynchronous, and can be captured, as TensorRT's kernels are. One call after the other uses the same pinned memory.
class OnCuda {
public:
    OnCuda(std::shared_ptr<Plan> of, const std::vector<ditedge::Tensor>& inputs, const ditedge::Tensor& output) : plan_(std::move(of)) {
        for (const ditedge::Tensor& input : inputs) inputs_.push_back(pinned(input));
        outputs_.push_back(pinned(output));
    }
    OnCuda(const OnCuda&) = delete;
    OnCuda& operator=(const OnCuda&) = delete;
    ~OnCuda() {
        for (const auto* side : {&inputs_, &outputs_})
            for (const ditedge::Tensor& tensor : *side) real_cuda().release(tensor.data);
    }

    void enqueue(const std::vector<ditedge::Tensor>& inputs, const ditedge::Tensor& output, cudaStream_t stream) {
        for (std::size_t i = 0; i < inputs.size(); ++i)
            succeed(real_cuda().copy(inputs_[i].data, inputs[i].data, inputs[i].bytes(), cudaMemcpyDefault, stream), "cudaMemcpyAsync");
        succeed(real_cuda().call(stream, run, this), "cudaLaunchHostFunc");
        succeed(real_cuda().copy(output.data, outputs_[0].data, output.bytes(), cudaMemcpyDefault, stream), "cudaMemcpyAsync");
    }

private:
    static ditedge::Tensor pinned(ditedge::Tensor tensor) {
        succeed(real_cuda().allocate(&tensor.data, tensor.bytes()), "cudaMallocHost");
        return tensor;
    }
    static void CUDART_CB run(void* self) {
        const OnCuda& call = *static_cast<OnCuda*>(self);
        guarded([&] {
            ++state.counts[call.plan_->graph];
            call.plan_->engine->run(call.inputs_, call.outputs_);
        });
    }

    std::shared_ptr<Plan> plan_;
    std::vector<ditedge::Tensor> inputs_, outputs_;
};

#ifdef TRT_MAJOR_RTX
struct MemoryDouble : VHostMemoryStubs {
    explicit MemoryDouble(std::string of) : bytes(std::move(of)) {}
    void* data() const noexcept override { return const_cast<char*>(bytes.data()); }
    std::size_t size() const noexcept override { return bytes.size(); }
    const std::string bytes;
};

// What kernels were compiled for, a line each; the first line is the driver.
struct CacheDouble : VRuntimeCacheStubs {
    static constexpr const char* kDriver = "driver 580";
    IHostMemory* serialize() const noexcept override {
        std::string text = kDriver;
        for (const std::string& one : compiled) text += "\n" + one;
        return new Public<IHostMemory, MemoryDouble>(text);
    }
    bool deserialize(const void* blob, std::size_t size) noexcept override {
        std::istringstream text(std::string(static_cast<const char*>(blob), size));
        std::string line;
        if (!std::getline(text, line) || line != kDriver) return false;
        while (std::getline(text, line)) compiled.insert(line);
        return true;
    }
    std::set<std::string> compiled;
};
using Cache = Public<IRuntimeCache, CacheDouble>;

struct ConfigDouble : VRuntimeConfigStubs {
    void setExecutionContextAllocationStrategy(ExecutionContextAllocationStrategy given) noexcept override { strategy = given; }
    void setDynamicShapesKernelSpecializationStrategy(DynamicShapesKernelSpecializationStrategy given) noexcept override { kernels = given; }
    IRuntimeCache* createRuntimeCache() const noexcept override { return new Cache(); }
    bool setRuntimeCache(const IRuntimeCache& given) noexcept override {
        cache = const_cast<CacheDouble*>(&static_cast<const Cache&>(given).implementation);
        return true;
    }
    ExecutionContextAllocationStrategy strategy = ExecutionContextAllocationStrategy::kSTATIC;
    DynamicShapesKernelSpecializationStrategy kernels = DynamicShapesKernelSpecializationStrategy::kLAZY;
    CacheDouble* cache = nullptr;
};
#else
struct CacheDouble;
#endif

struct ContextDouble : VExecutionContextStubs {
    ContextDouble(std::shared_ptr<Plan> of, std::int32_t first_profile, CacheDouble* compiled)
        : plan(std::move(of)), profile(first_profile), cache(compiled) {}

#ifdef TRT_MAJOR_RTX
    bool isStreamCapturable(cudaStream_t stream) const noexcept override {
        const std::lock_guard<std::recursive_mutex> lock(mutex);
        ++state.counts["asked"];
        return state.capturable && state.streams.count(number(stream)) != 0;
    }
    void compile() {
        std::string text = plan->graph;
        for (const auto& shape : shapes)
            for (const std::int64_t size : shape.second) text += " " + std::to_string(size);
        if (cache == nullptr || cache->compiled.insert(text).second) ++state.counts["compile"];
    }
#else
    void compile() {}
#endif

    std::int32_t getOptimizationProfile() const noexcept override { return profile; }
    bool setOptimizationProfileAsync(std::int32_t index, cudaStream_t stream) noexcept override {
        profile = index;
        return accepted([&] {
            demand(index >= 0 && index < plan->before() + static_cast<std::int32_t>(plan->further.size()), "no such profile");
            demand(real_cuda().call != nullptr || state.streams.count(number(stream)) != 0, "no such stream");
        });
    }
    void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept override {
        accepted([&] {
            demand(size >= static_cast<std::int64_t>(plan->scratch) && number(memory) % kAlignment == 0, "scratch memory does not do");
            scratch = static_cast<char*>(memory), scratch_size = static_cast<std::size_t>(size);
        });
    }
    bool setInputShape(const char* name, const Dims& dims) noexcept override {
        return accepted([&] {
            demand(profile >= 0, "shape before a profile");
            const ditedge::TensorInfo* tensor = plan->find(name);
            demand(tensor != nullptr && tensor->shape.size() == static_cast<std::size_t>(dims.nbDims), std::string("no such input: ") + name);
            const std::vector<std::int64_t> shape(dims.d, dims.d + dims.nbDims);
            for (std::size_t i = 0; i < shape.size(); ++i)
                demand(limit(name, "min").at(i) <= shape[i] && shape[i] <= limit(name, "max").at(i),
                       std::string("shape outside of the profile: ") + name);
            warm = warm && shapes[name] == shape;
            shapes[name] = shape;
        });
    }
    bool setTensorAddress(const char* name, void* address) noexcept override {
        return accepted([&] {
            demand(plan->find(name) != nullptr, std::string("no such tensor: ") + name);
            demand(number(address) % kAlignment == 0, std::string("address is not a multiple of 256: ") + name);
            addresses[name] = address;
        });
    }
    bool enqueueV3(cudaStream_t stream) noexcept override {
        return accepted([&] {
            std::vector<ditedge::Tensor> inputs;
            for (const ditedge::TensorInfo& input : plan->inputs) {
                demand(shapes.count(input.name) != 0, "input without a shape: " + input.name);
                inputs.push_back(bound(input, shapes[input.name]));
            }
            std::vector<ditedge::Tensor> outputs;
            for (const ditedge::TensorInfo& output : plan->outputs) outputs.push_back(bound(output, shape_of(output)));
            demand(capturing == 0 || warm, "captured before its first enqueue");
            warm = warm || capturing == 0;
            demand(scratch != nullptr, "no scratch memory");
            compile();
            if (real_cuda().call != nullptr) {
                demand(outputs.size() == 1, "one output");
                if (on_cuda == nullptr) on_cuda = std::make_unique<OnCuda>(plan, inputs, outputs[0]);
                on_cuda->enqueue(inputs, outputs[0], stream);
                return;
            }
            std::vector<const void*> uses = {scratch};
            for (const auto* side : {&inputs, &outputs})
                for (const ditedge::Tensor& tensor : *side) uses.push_back(tensor.data);
            const auto work = [plan = plan, profile = profile, inputs, outputs, scratch = scratch, size = scratch_size] {
                ++state.counts[plan->graph];
                if (profile == 1 && plan->before() == 2) ++state.counts[plan->graph + " of one image"];
                for (const ditedge::Tensor& input : inputs) {
                    read(input.data, input.bytes(), plan->graph + "/" + input.name);
                    for (const ditedge::Tensor& output : outputs) apart(input.data, input.bytes(), output, input.name);
                }
                find(scratch, size, "scratch");
                for (const ditedge::Tensor& output : outputs) apart(scratch, size, output, "scratch");
                std::memset(scratch, 0x7F + state.counts[plan->graph], size);
                plan->engine->run(inputs, outputs);
                for (const ditedge::Tensor& output : outputs) written(output.data, output.bytes(), plan->graph + "/" + output.name);
            };
            enqueue(number(stream), {{work, uses}});
        });
    }

private:
    const nlohmann::json& limit(const char* name, const char* which) const {
        if (profile == 1 && plan->before() == 2) return plan->one_image.at(name);
        const nlohmann::json& ranges = profile == 0 ? plan->profile : plan->further.at(static_cast<std::size_t>(profile - plan->before()));
        return ranges.at(name).at(which);
    }
    static void apart(const void* address, std::size_t size, const ditedge::Tensor& output, const std::string& what) {
        const auto a = number(address), b = number(output.data);
        demand(a + size <= b || b + output.bytes() <= a, std::string(output.name) + " lies over " + what);
    }
    ditedge::Tensor bound(const ditedge::TensorInfo& info, std::vector<std::int64_t> shape) {
        demand(addresses.count(info.name) != 0, "tensor without an address: " + info.name);
        return {info.name.c_str(), info.dtype, std::move(shape), addresses[info.name]};
    }
    std::vector<std::int64_t> shape_of(const ditedge::TensorInfo& output) {
        if (plan->graph == "step") return shapes["state"];
        std::vector<std::int64_t> shape = output.shape;
        if (plan->graph == "position") shape[0] = shapes["row"][0], shape[1] = shapes["column"][0];
        else shape[0] = shapes[plan->inputs[0].name][0];
        const bool picture = plan->graph == "decoder" || plan->graph == "preview";
        for (std::size_t i = 1; i < shape.size(); ++i)  // of a model that takes prompts
            if (shape[i] < 0) shape[i] = picture ? plan->factor * shapes["latent"][i + 1] : shapes["hidden"][1];
        return shape;
    }

    std::shared_ptr<Plan> plan;
    std::int32_t profile;
    CacheDouble* cache;
    std::map<std::string, std::vector<std::int64_t>> shapes;
    std::map<std::string, void*> addresses;
    char* scratch = nullptr;
    std::size_t scratch_size = 0;
    bool warm = false;  // enqueued outside of a capture since the last change of shape
    std::unique_ptr<OnCuda> on_cuda;
};

struct EngineDouble : VCudaEngineStubs {
    explicit EngineDouble(std::shared_ptr<Plan> of) : plan(std::move(of)) {}

    std::int64_t getDeviceMemorySizeV2() const noexcept override { return static_cast<std::int64_t>(plan->scratch); }
    std::int64_t getStreamableWeightsSize() const noexcept override { return 1 << 30; }
    bool setWeightStreamingBudgetV2(std::int64_t budget) noexcept override {
        const std::lock_guard<std::recursive_mutex> lock(mutex);
        state.counts["weight budget MB"] = static_cast<int>(budget >> 20);
        return contexts == 0;
    }
    std::int32_t getNbIOTensors() const noexcept override { return static_cast<std::int32_t>(plan->inputs.size() + plan->outputs.size()); }
    const char* getIOTensorName(std::int32_t index) const noexcept override {
        const auto i = static_cast<std::size_t>(index);
        return (i < plan->inputs.size() ? plan->inputs[i] : plan->outputs.at(i - plan->inputs.size())).name.c_str();
    }
    TensorIOMode getTensorIOMode(const char* name) const noexcept override {
        for (const auto& input : plan->inputs)
            if (input.name == name) return TensorIOMode::kINPUT;
        return TensorIOMode::kOUTPUT;
    }
    DataType getTensorDataType(const char* name) const noexcept override {
        const ditedge::Dtype dtype = plan->find(name)->dtype;
        return dtype == ditedge::Dtype::float32 ? DataType::kFLOAT : dtype == ditedge::Dtype::int64 ? DataType::kINT64 : DataType::kUINT8;
    }
    Dims getTensorShape(const char* name) const noexcept override {
        const auto& shape = plan->find(name)->shape;
        Dims dims{static_cast<std::int32_t>(shape.size()), {}};
        std::copy(shape.begin(), shape.end(), dims.d);
        return dims;
    }
#ifdef TRT_MAJOR_RTX
    IRuntimeConfig* createRuntimeConfig() noexcept override { return new Public<IRuntimeConfig, ConfigDouble>(); }
    IExecutionContext* createExecutionContextWithRuntimeConfig(IRuntimeConfig* given) noexcept override {
        const ConfigDouble& config = static_cast<Public<IRuntimeConfig, ConfigDouble>*>(given)->implementation;
        const bool eager = config.kernels == DynamicShapesKernelSpecializationStrategy::kEAGER;
        return eager ? context(config.strategy, config.cache) : nullptr;
    }
#else
    IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept override { return context(strategy, nullptr); }
#endif

private:
    IExecutionContext* context(ExecutionContextAllocationStrategy strategy, CacheDouble* cache) {
        const std::lock_guard<std::recursive_mutex> lock(mutex);
        if (strategy != ExecutionContextAllocationStrategy::kUSER_MANAGED) return nullptr;
        ++state.counts["contexts"];
        return new Public<IExecutionContext, ContextDouble>(plan, contexts++ == 0 ? 0 : -1, cache);
    }

    std::shared_ptr<Plan> plan;
    int contexts = 0;
};

struct RuntimeDouble : VRuntimeStubs {
    explicit RuntimeDouble(ILogger* given) : logger(given) {}

    void setEngineHostCodeAllowed(bool allowed) noexcept override { host_code = allowed; }
    ICudaEngine* deserializeCudaEngine(const void* blob, std::size_t size) noexcept override {
        const std::lock_guard<std::recursive_mutex> lock(mutex);
        try {
            const std::string text(static_cast<const char*>(blob), size);
            const nlohmann::json json = nlohmann::json::parse(text);
            auto plan = std::make_shared<Plan>();
            plan->graph = json.at("graph");
            plan->profile = json.at("profile");
            plan->one_image = json.at("one_image");
            plan->further = json.at("further");
            plan->factor = json.at("factor");
            plan->scratch = json.at("scratch");
            plan->inputs = tensors(json.at("info").at("inputs"));
            plan->outputs = tensors(json.at("info").at("outputs"));
            if (json.contains("host code") && !host_code) throw std::runtime_error("host code is not allowed");
            ditedge::EngineOptions options;
            options.threads = 1;
            const std::string onnx = json.at("onnx");
            std::ifstream file(onnx, std::ios::binary);
            if (!file) throw std::runtime_error("cannot read " + onnx);
            const std::string bytes{std::istreambuf_iterator<char>(file), {}};
            plan->engine = ditedge::open_ort_engine({onnx, bytes, {}}, {"", plan->inputs, plan->outputs}, options, true);
            return new Public<ICudaEngine, EngineDouble>(plan);
        } catch (const std::exception& error) {
            logger->log(ILogger::Severity::kERROR, error.what());
            return nullptr;
        }
    }

private:
    ILogger* logger;
    bool host_code = false;
};

}  // namespace

void unexpected(const char* what) {
    std::fprintf(stderr, "the double was not taught %s\n", what);
    std::abort();
}

extern "C" {
#define EXPORT __attribute__((visibility("default")))

EXPORT std::int32_t getInferLibVersion() noexcept { return state.version; }
EXPORT void* createInferRuntime_INTERNAL(void* logger, std::int32_t) noexcept {
    if (state.devices < 1 || state.version / 10000 != NV_TENSORRT_MAJOR) unexpected("a runtime without a driver, or of another version");
    return static_cast<IRuntime*>(new Public<IRuntime, RuntimeDouble>(static_cast<ILogger*>(logger)));
}

EXPORT const char* cudaGetErrorName(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : error == cudaErrorIllegalAddress ? "cudaErrorIllegalAddress" : error == cudaErrorStreamCaptureInvalidated ? "cudaErrorStreamCaptureInvalidated" : "another error";
}
EXPORT cudaError_t cudaGetDeviceCount(int* count) {
    *count = state.devices;
    return state.devices > 0 ? cudaSuccess : cudaErrorInsufficientDriver;
}
EXPORT cudaError_t cudaDriverGetVersion(int* version) {
    *version = state.devices > 0 ? 13000 : 0;
    return cudaSuccess;
}
EXPORT cudaError_t cudaSetDevice(int device) { return device < state.devices ? cudaSuccess : cudaErrorInvalidDevice; }
EXPORT cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? 8 : 6;
    return cudaSuccess;
}
EXPORT cudaError_t cudaMalloc(void** pointer, std::size_t size) { return guarded([&] { allocate(pointer, size, false); }); }
EXPORT cudaError_t cudaMallocHost(void** pointer, std::size_t size) { return guarded([&] { allocate(pointer, size, true); }); }
EXPORT cudaError_t cudaFree(void* pointer) { return guarded([&] { release(pointer, false); }); }
EXPORT cudaError_t cudaFreeHost(void* pointer) { return guarded([&] { release(pointer, true); }); }
EXPORT cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t size, cudaMemcpyKind kind, cudaStream_t stream) {
    return guarded([&] {
        demand(kind == cudaMemcpyDefault, "kind of a copy");
        const bool source_pinned = find(from, size, "copy").first->pinned, pinned = find(to, size, "copy").first->pinned;
        const char* way = source_pinned == pinned ? "copy" : pinned ? "download" : "upload";
        const auto work = [=] {
            ++state.counts[way];
            read(from, size, "source of a copy");
            find(to, size, "destination of a copy");
            std::memcpy(to, from, size);
            written(to, size, "destination of a copy");
        };
        enqueue(number(stream), {{work, {to, from}}});
    });
}
EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
    return guarded([&] {
        const auto work = [=] {
            ++state.counts["host call"];
            function(data);
        };
        enqueue(number(stream), {{work, {}}});
    });
}
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    return guarded([&] {
        demand(flags == cudaStreamNonBlocking, "flags of a stream");
        make_handle(stream);
        state.streams[number(*stream)];
    });
}
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    return guarded([&] {
        demand(state.streams.count(number(stream)) != 0 && state.streams[number(stream)].empty(), "stream destroyed while work is enqueued");
        state.streams.erase(number(stream));
    });
}
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    return guarded([&] {
        demand(capturing == 0 && mode == cudaStreamCaptureModeThreadLocal, "capture within a capture");
        capturing = number(stream);
    });
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    return guarded([&] {
        demand(capturing == number(stream), "end of no capture");
        capturing = 0;
        if (state.captures == 0) captured.clear(), throw cudaErrorStreamCaptureInvalidated;
        if (state.captures > 0) --state.captures;
        make_handle(graph);
        state.graphs[number(*graph)] = std::move(captured);
        captured.clear();
        ++state.counts["capture"];
    });
}
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long flags) {
    return guarded([&] {
        demand(state.graphs.count(number(graph)) != 0 && flags == 0, "no such graph");
        make_handle(executable);
        state.graphs[number(*executable)] = state.graphs[number(graph)];
    });
}
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    return guarded([&] { demand(state.graphs.erase(number(graph)) == 1, "no such graph"); });
}
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    return guarded([&] { demand(state.graphs.erase(number(graph)) == 1, "no such graph"); });
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    return guarded([&] {
        demand(state.graphs.count(number(graph)) != 0, "no such graph");
        ++state.counts["launch"];
        enqueue(number(stream), state.graphs[number(graph)]);
    });
}
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
    return guarded([&] {
        demand(flags == cudaEventDisableTiming, "flags of an event");
        make_handle(event);
        state.events[number(*event)] = true;
    });
}
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event) {
    return guarded([&] { demand(state.events.erase(number(event)) == 1, "no such event"); });
}
EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return guarded([&] {
        demand(state.events.count(number(event)) != 0, "no such event");
        state.events[number(event)] = false;
        state.recorded_in[number(event)] = number(stream);
        enqueue(number(stream), {}, number(event));
    });
}
EXPORT cudaError_t cudaEventQuery(cudaEvent_t event) {
    return guarded([&] {
        demand(capturing == 0, "event queried while capturing");
        demand(state.events.count(number(event)) != 0, "no such event");
        if (!state.events[number(event)]) {
            demand(!state.streams[state.recorded_in[number(event)]].empty(), "waiting for an event that nothing will complete");
            advance(state.recorded_in[number(event)]);
        }
        if (!state.events[number(event)]) throw cudaErrorNotReady;
    });
}

// Of ONNX Runtime's CUDA provider (cuda_provider.cpp).
EXPORT bool double_run(const char* graph, void* stream, const DoublePlace* inputs, std::size_t input_count, const DoublePlace* outputs,
                       std::size_t output_count, void (*work)(void*), void* data, bool waits, bool mixed) {
    return accepted([&] {
        demand(waits || !mixed, "pinned memory is reused");
        demand(!waits || mixed, "the run stops the stream");
        demand(capturing == 0, "ONNX Runtime allocates while capturing");
        struct Place {
            std::string name;
            void* address;
            std::size_t bytes;
        };
        std::vector<Place> read_from, written_to;
        std::vector<const void*> uses;
        for (std::size_t i = 0; i < input_count; ++i) read_from.push_back({inputs[i].name, inputs[i].address, inputs[i].bytes});
        for (std::size_t i = 0; i < output_count; ++i) written_to.push_back({outputs[i].name, outputs[i].address, outputs[i].bytes});
        for (const auto* side : {&read_from, &written_to})
            for (const Place& place : *side) uses.push_back(place.address);
        const auto computed = [name = std::string(graph), read_from, written_to, work, data] {
            ++state.counts[name];
            for (const Place& input : read_from) read(input.address, input.bytes, name + "/" + input.name);
            for (const Place& output : written_to) {
                find(output.address, output.bytes, name + "/" + output.name);
                for (const Place& input : read_from)
                    demand(number(input.address) + input.bytes <= number(output.address) || number(output.address) + output.bytes <= number(input.address),
                           output.name + " lies over " + input.name);
                std::memset(output.address, 0xFF, output.bytes);
                written(output.address, output.bytes, output.name);
            }
            work(data);
        };
        enqueue(number(stream), {{computed, uses}});
        while (waits && !state.streams[number(stream)].empty()) advance(number(stream));
    });
}

// For the tests.
EXPORT void double_reset(int devices, int version, int fail_after) {
    const std::lock_guard<std::recursive_mutex> lock(mutex);
    state = State();
    capturing = 0, captured.clear();
    state.devices = devices;
    state.fail_after = fail_after;
    if (version != 0) state.version = version;
}
EXPORT void double_not_capturable() {
    const std::lock_guard<std::recursive_mutex> lock(mutex);
    state.capturable = false;
}
EXPORT void double_refuse_captures(int after) {
    const std::lock_guard<std::recursive_mutex> lock(mutex);
    state.captures = after;
}
EXPORT std::size_t double_report(char* text, std::size_t size) {
    const std::lock_guard<std::recursive_mutex> lock(mutex);
    std::size_t live = 0;
    for (const auto& block : state.blocks) live += block.second.live;
    const std::string report = nlohmann::json{{"broken", state.broken}, {"counts", state.counts}, {"live", live}, {"graphs", state.graphs.size()},
                                              {"events", state.events.size()}, {"streams", state.streams.size()}, {"longest_queue", state.longest_queue}}.dump();
    std::snprintf(text, size, "%s", report.c_str());
    return report.size();
}
}
