// What an engine is. ONNX Runtime is an `Engine`, one loaded graph that HostLoop drives; TensorRT, and ONNX Runtime's CUDA provider,
// keep a whole run on the device (plan.hpp), and so have a `Loop` of their own. A new kind of engine is one file and a line in open_loop.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bundle.hpp"

namespace ditedge {

// A buffer bound by address. Inputs are never written to.
struct Tensor {
    const char* name;
    Dtype dtype;
    std::vector<std::int64_t> shape;
    void* data;

    std::size_t bytes() const {
        std::size_t bytes = dtype == Dtype::float32 ? 4 : dtype == Dtype::int64 ? 8 : 1;
        for (const std::int64_t dimension : shape) bytes *= static_cast<std::size_t>(dimension);
        return bytes;
    }
};

template <class T>
Tensor view(const char* name, const T* data, std::vector<std::int64_t> shape) {
    constexpr Dtype dtype = sizeof(T) == 8 ? Dtype::int64 : sizeof(T) == 4 ? Dtype::float32 : Dtype::uint8;
    return {name, dtype, std::move(shape), const_cast<T*>(data)};
}

// One loaded graph. One caller at a time.
class Engine {
public:
    virtual ~Engine() = default;
    // Runs once, writing into `outputs`. Inputs that the graph does not have are ignored; nothing is kept after the call.
    virtual void run(const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs) = 0;
    // Any thread: makes the run that is going on, and later ones, throw Error (cancelled) until it is given false.
    virtual void interrupt(bool stop) = 0;
};

// The manifest's tensor of this name, where the shape agrees (below 0: dynamic); else null. Buffers are bound by address, so
// engines refuse a graph with a tensor that is not the manifest's.
inline const TensorInfo* find_tensor(const std::vector<TensorInfo>& promised, const std::string& name,
                                     const std::vector<std::int64_t>& shape) {
    const auto fits = [](std::int64_t a, std::int64_t b) { return a < 0 || b < 0 || a == b; };
    for (const TensorInfo& info : promised) {
        const std::vector<std::int64_t>& wanted = info.shape;
        if (info.name == name && std::equal(shape.begin(), shape.end(), wanted.begin(), wanted.end(), fits)) return &info;
    }
    return nullptr;
}

struct EngineOptions {
    std::string engine = "onnxruntime", provider = "cpu", library;
    int threads = 0, device = 0;
    bool spin = false, tf32 = false, cuda_graph = true;
};

// Opens the engine of one graph. keep_buffers: between runs; quicker for many runs of one shape, false halves the memory
// of a decoder. Opens no file but the library's. Throws Error (engine) when the library is missing, or the graph is not what `info` says.
std::unique_ptr<Engine> open_ort_engine(const GraphBytes& bytes, const GraphInfo& info,
                                        const EngineOptions& options, bool keep_buffers);

struct StepTables;
struct ImageRun;

// Fills [B, C, H, W]: draw 0 is the initial noise, draw n + 1 that of step n.
using Noise = std::function<void(std::int64_t draw, float* numbers)>;

// One batch to sample.
struct Run {
    const Program& program;
    const StepTables& tables;
    Size latent;  // H, W
    Noise noise;
    const std::atomic<bool>& cancel;  // checked before each step: throws Error (cancelled)
    // Each step, in order: steps done, and the state [B, K, C, H, W] when `wants_state(step)` or the engine has it on the host.
    std::function<void(std::int64_t step, const float* state)> on_step;
    std::function<bool(std::int64_t step)> wants_state;
};

// What every loop begins and ends with. state [B, K, C, H, W]: slot 0 starts as the scaled initial noise and, if the program
// says so, given latents [B, C, H, W] (else null), the others at zero; slot 0 ends as the latents. Throws Error (request).
void first_state(const Program& program, const Noise& noise, const float* given, std::int64_t batch, std::size_t latent_count, float* state);
void latents_of_state(const Run& run, std::size_t latent_count, const float* state, float* latents);
void check_cancelled(const Run& run, std::int64_t step);  // throws Error (cancelled)

// The loaded engines of one bundle. One caller at a time.
class Loop {
public:
    explicit Loop(std::shared_ptr<const Bundle> bundle);
    virtual ~Loop() = default;
    // Any thread, a signal handler too: the call that is going on throws Error (cancelled). `begin` comes before each call
    // and forgets a cancel of an earlier one. Their orders differ, so that no interrupted engine is left behind.
    void cancel() { interrupt(true), cancelled.store(true); }
    void begin() { cancelled.store(false), interrupt(false); }
    virtual void sample(const Run& run, float* latents) = 0;                         // -> [B, C, H, W]
    // One step of each run that is not done, in a batch. Throws Error (request) where only whole programs can be run.
    virtual void advance(const std::vector<ImageRun*>& runs);
    // graph: "decoder" or "preview"; latents [count, C, H, W] of one size -> [count, h, w, c]
    void decode(const std::string& graph, const float* latents, std::int64_t count, const Size& latent, std::uint8_t* images);
    // Sentences on what went on otherwise than it was asked for; they stay where they are.
    const std::deque<std::string>& warnings() const { return warnings_; }

    std::atomic<bool> cancelled{false};

protected:
    virtual void interrupt(bool) {}
    // count <= at_once_
    virtual void decode_some(const std::string& graph, const float* latents, std::int64_t count, const Size& latent, std::uint8_t* images) = 0;

    const std::shared_ptr<const Bundle> bundle_;
    std::deque<std::string> warnings_;
    std::map<std::string, std::int64_t> at_once_;  // pictures of the model's own size made at a time, of the graphs that make some
};

// Throws Error (engine, no device).
std::unique_ptr<Loop> open_loop(std::shared_ptr<const Bundle> bundle, const EngineOptions& options);
std::unique_ptr<Loop> open_host_loop(std::shared_ptr<const Bundle> bundle, const EngineOptions& options);
std::unique_ptr<Loop> open_device_loop(std::shared_ptr<const Bundle> bundle, const EngineOptions& options);

}  // namespace ditedge
