// The sampling loop on a GPU (runtime/loop/device_loop.py): everything is uploaded ahead, every step enqueued, captured once
// and replayed. Tables lie in one arena, adaLN rows of many steps are computed at once, two states take turns. Graphs
// depend on shapes and addresses only, so a batch of other labels, seeds or guidance replays them. The host waits by
// polling events and never stops the stream.
#include <algorithm>
#include <cstring>
#include <deque>
#include <list>
#include <tuple>

#include "device_memory.hpp"
#include "error.hpp"
#include "tables.hpp"

namespace ditedge {
namespace {

using Context = std::unique_ptr<nvinfer1::IExecutionContext>;

constexpr std::int64_t kModulationBytes = 256 << 20;   // adaLN rows on the device; more steps are computed in blocks
constexpr std::int64_t kSegment = 4, kAhead = 2;       // steps of one CUDA graph; graphs enqueued at most
constexpr std::int64_t kWatchedAhead = 4;              // the same with a callback after each step: graphs of one step
constexpr std::size_t kDecoding = kWatchedAhead;       // the mark of a decoder's work, after those of segments
constexpr std::size_t kRunsKept = 2;                   // shapes whose buffers and graphs are kept: whole batches, the last

// The plans of a bundle on one GPU, and what all runs of a sampler share.
struct Device {
    Device(const Bundle& opened, const EngineOptions& options)
        : bundle(opened), gpu(options), record(read_build_record(bundle, options.engine)), stream(gpu), memory(gpu) {
        gpu.check_record(record);
        for (const auto& [graph, info] : bundle.manifest.graphs) {
            if (!has_plan(graph)) continue;
            plans[graph] = std::make_unique<Plan>(gpu, bundle, record, graph);
            scratch_bytes = std::max(scratch_bytes, plans[graph]->scratch_bytes());
        }
        scratch = memory.device(scratch_bytes);
    }
    // A context for inputs of these shapes; tensors that the plan does not have are passed over.
    Context context(const char* graph, const std::vector<Tensor>& inputs) const {
        Plan& plan = *plans.at(graph);
        Context context = plan.context(stream.get(), scratch, scratch_bytes);
        for (const Tensor& input : inputs) plan.set_shape(*context, input.name, input.shape);
        return context;
    }
    // How many of `wanted` fit the largest first dimension that a plan was built for.
    std::int64_t at_most(const char* graph, const char* input, std::int64_t wanted) const {
        const auto found = record.plans.at(graph).profile.find(input);
        if (found == record.plans.at(graph).profile.end() || found->second.max.empty()) return wanted;
        return std::min(wanted, std::max<std::int64_t>(1, found->second.max[0]));
    }

    const Bundle& bundle;
    Gpu gpu;
    BuildRecord record;
    Stream stream;
    Memory memory;
    std::map<std::string, std::unique_ptr<Plan>> plans;
    std::size_t scratch_bytes = kAlignment;
    char* scratch = nullptr;  // never moved: captured graphs hold its address
};

// What the buffers and graphs of a run depend on.
auto shape_of(const Run& run) {
    const StepTables& tables = run.tables;
    std::vector<std::size_t> counts;  // E of each of the steps' evaluations
    for (const Evaluations& some : tables.evaluations) counts.push_back(some.sample.size());
    return std::tuple(tables.evaluations_of, tables.draws, counts, tables.batch, tables.slots, tables.conditions.rows, run.on_step != nullptr);
}

// Buffers, contexts and CUDA graphs for runs of one shape. Steps are enqueued a segment at a time; segment i waits until
// segment i - ahead is done, so that a ring of `ahead` segments holds their noise and their states for the host.
class DeviceRun {
public:
    DeviceRun(Device& device, const Run& run)
        : shape(shape_of(run)), device_(device), stream_(device.stream), gpu_(device.gpu), memory_(device.gpu),
          steps_(run.tables.steps), segment_(run.on_step ? 1 : kSegment), ahead_(run.on_step ? kWatchedAhead : kAhead),
          rows_(run.tables.conditions.rows) {
        const StepTables& tables = run.tables;
        const std::int64_t batch = tables.batch;
        const ModelInfo& model = device.bundle.manifest.model;
        const std::int64_t width = device.bundle.manifest.modulation_width, c = model.in_channels, h = model.input_size;
        row_bytes_ = sizeof(float) * static_cast<std::size_t>(rows_ * width);
        draw_bytes_ = sizeof(float) * static_cast<std::size_t>(batch) * device.bundle.latent_count();
        state_bytes_ = draw_bytes_ * static_cast<std::size_t>(tables.slots);
        // One call writes the rows of several steps end to end: possible where each step's begin at an aligned address.
        const std::int64_t held = std::clamp<std::int64_t>(kModulationBytes / (4 * rows_ * width), 1, steps_);
        if (row_bytes_ % kAlignment == 0)
            per_call_ = std::max<std::int64_t>(1, device.at_most("conditioner", tables.conditions.values[0].name, held * rows_) / rows_);
        block_ = std::min((steps_ + per_call_ - 1) / per_call_, held / per_call_) * per_call_;

        const float* f32 = nullptr;  // only the shapes of these views count
        conditioner_ = device.context("conditioner", tables.conditions.of_steps(0, per_call_).inputs());
        for (std::int64_t step = 0; step < steps_; ++step) {
            evaluations_.push_back(tables.evaluation_count(step));
            Context& context = contexts_[evaluations_.back()];
            if (context != nullptr) continue;
            std::vector<Tensor> inputs = tables.inputs(step);
            inputs.push_back(view("state", f32, {batch, tables.slots, c, h, h}));
            inputs.push_back(view("modulation", f32, {rows_, width}));
            inputs.push_back(view("noise", f32, {batch, c, h, h}));
            context = device.context("step", inputs);
        }
        silence_.assign(draw_bytes_ / sizeof(float), 0.0f);
        lay_out(tables);
        const auto ring = static_cast<std::size_t>(segment_ * ahead_);
        tables_ = memory_.device(arena_.size());
        tables_host_ = memory_.pinned(arena_.size());
        modulation_ = memory_.device(static_cast<std::size_t>(block_) * aligned(row_bytes_));
        for (char*& state : states_) state = memory_.device(state_bytes_);
        state_host_ = memory_.pinned((ring + 1) * aligned(state_bytes_));
        noise_ = memory_.device(ring * aligned(draw_bytes_));
        noise_host_ = memory_.pinned(ring * aligned(draw_bytes_));
    }
    DeviceRun(const DeviceRun&) = delete;
    DeviceRun& operator=(const DeviceRun&) = delete;
    ~DeviceRun() {  // nothing is enqueued: see `sample`
        for (cudaGraphExec_t graph : graphs_) gpu_.cuda.GraphExecDestroy(graph);
    }

    void sample(const Run& run) {
        try {
            enqueue_all(run);
        } catch (...) {  // what is enqueued still uses this run's memory: let it end
            try {
                stream_.mark(0);
                stream_.wait(0);
            } catch (const Error&) {  // the first failure is the one to report
            }
            throw;
        }
    }
    float* state() { return reinterpret_cast<float*>(state_host_); }  // pinned: the first state before, the last one after

    const decltype(shape_of(std::declval<Run>())) shape;

private:
    struct Binding {
        const char* name;
        std::size_t offset;  // in the arena
    };

    // The arena: the tables of every step, timesteps and labels of every call of the conditioner, zeros.
    void lay_out(const StepTables& tables) {
        arena_ = Arena(), bindings_.clear(), calls_.clear();
        for (std::int64_t step = 0; step < steps_; ++step) {
            bindings_.emplace_back();
            for (const Tensor& tensor : tables.inputs(step))
                bindings_.back().push_back({tensor.name, arena_.place(tensor.data, tensor.bytes())});
        }
        const std::int64_t calls = (steps_ + per_call_ - 1) / per_call_;
        conditions_.clear();
        for (std::int64_t call = 0; call < calls; ++call) conditions_.push_back(tables.conditions.of_steps(call * per_call_, per_call_));
        for (const Conditions& some : conditions_) {
            calls_.emplace_back();
            for (const Tensor& tensor : some.inputs())
                calls_.back().push_back({tensor.name, arena_.place(tensor.data, tensor.bytes())});
        }
        silence_at_ = arena_.place(silence_.data(), draw_bytes_);
    }

    void enqueue_all(const Run& run) {
        lay_out(run.tables);
        arena_.write(tables_host_);
        stream_.copy(tables_, tables_host_, arena_.size());
        stream_.copy(states_[0], state_host_, state_bytes_);
        std::deque<std::int64_t> pending;  // ends of segments that are enqueued
        const auto deliver = [&] {
            stream_.wait(place(pending.front() - 1));
            const std::int64_t done = pending.front();
            pending.pop_front();
            const char* state = state_host_ + (1 + ring(done - 1)) * aligned(state_bytes_);
            if (run.on_step) run.on_step(done, run.wants_state(done) ? reinterpret_cast<const float*>(state) : nullptr);
        };
        for (std::int64_t first = 0; first < steps_; first += segment_) {
            const auto most = static_cast<std::size_t>(ahead_);
            while (!pending.empty() && (pending.size() >= most || stream_.passed(place(pending.front() - 1)))) deliver();
            check_cancelled(run, first);
            const std::int64_t last = std::min(first + segment_, steps_);
            upload_noise(run, first, last);
            launch(first, last);
            if (run.on_step && run.wants_state(last))
                stream_.copy(state_host_ + (1 + ring(last - 1)) * aligned(state_bytes_), states_[last % 2], state_bytes_);
            if (last == steps_) stream_.copy(state_host_, states_[last % 2], state_bytes_);
            stream_.mark(place(last - 1));
            pending.push_back(last);
        }
        while (!pending.empty()) deliver();
    }

    std::size_t place(std::int64_t step) const { return static_cast<std::size_t>(step / segment_ % ahead_); }
    std::size_t ring(std::int64_t step) const { return static_cast<std::size_t>(step % (segment_ * ahead_)); }
    Context& steps_of(std::int64_t step) { return contexts_.at(evaluations_[static_cast<std::size_t>(step)]); }

    // Into places of the ring that no enqueued work reads any more.
    void upload_noise(const Run& run, std::int64_t first, std::int64_t last) {
        for (std::int64_t step = first; step < last; ++step) {
            if (!draws_[static_cast<std::size_t>(step)]) continue;
            const std::size_t at = ring(step) * aligned(draw_bytes_);
            run.noise(step + 1, reinterpret_cast<float*>(noise_host_ + at));
            stream_.copy(noise_ + at, noise_host_ + at, draw_bytes_);
        }
    }

    // Enqueues a segment: as a CUDA graph, captured now when it is the first time.
    void launch(std::int64_t first, std::int64_t last) {
        if (device_.record.weight_streaming_mb) return enqueue(first, last);  // copies from host memory: not for a graph
        const auto index = static_cast<std::size_t>(first / segment_);
        if (index == 0 && graphs_.empty()) warm_up();
        if (index == graphs_.size()) {
            cudaGraph_t graph = nullptr;
            gpu_.check(gpu_.cuda.StreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
            try {
                enqueue(first, last);
            } catch (...) {
                if (gpu_.cuda.StreamEndCapture(stream_.get(), &graph) == cudaSuccess) gpu_.cuda.GraphDestroy(graph);
                throw;
            }
            gpu_.check(gpu_.cuda.StreamEndCapture(stream_.get(), &graph), "cudaStreamEndCapture");
            cudaGraphExec_t executable = nullptr;
            const cudaError_t error = gpu_.cuda.GraphInstantiateWithFlags(&executable, graph, 0);
            gpu_.cuda.GraphDestroy(graph);
            gpu_.check(error, "cudaGraphInstantiateWithFlags");
            graphs_.push_back(executable);
        }
        gpu_.check(gpu_.cuda.GraphLaunch(graphs_[index], stream_.get()), "cudaGraphLaunch");
    }

    // Runs every context once: TensorRT allocates at its first enqueue, which capture forbids.
    void warm_up() {
        modulate(0);
        for (const auto& known : contexts_)
            step(std::find(evaluations_.begin(), evaluations_.end(), known.first) - evaluations_.begin(), 0, tables_ + silence_at_, 0);
    }

    void enqueue(std::int64_t first, std::int64_t last) {
        for (std::int64_t step = first; step < last; ++step) {
            const std::int64_t end = step % block_ == 0 ? std::min(step + block_, steps_) : step;
            for (std::int64_t at = step; at < end; at += per_call_) modulate(at / per_call_);
            const bool draws = draws_[static_cast<std::size_t>(step)];
            char* noise = draws ? noise_ + ring(step) * aligned(draw_bytes_) : tables_ + silence_at_;
            this->step(step, step % block_, noise, step % 2);
        }
    }

    // One call of the conditioner: the adaLN rows of a few steps.
    void modulate(std::int64_t call) {
        const Plan& plan = *device_.plans.at("conditioner");
        for (const Binding& binding : calls_[static_cast<std::size_t>(call)])
            plan.set_address(*conditioner_, binding.name, tables_ + binding.offset);
        const auto place = static_cast<std::size_t>(call * per_call_ % block_);
        plan.set_address(*conditioner_, "modulation", modulation_ + place * aligned(row_bytes_));
        plan.enqueue(*conditioner_, stream_.get());
    }

    // One step, from state `from` to the other one, with the adaLN rows at place `row`.
    void step(std::int64_t step, std::int64_t row, char* noise, std::int64_t from) {
        const Plan& plan = *device_.plans.at("step");
        nvinfer1::IExecutionContext& context = *steps_of(step);
        for (const Binding& binding : bindings_[static_cast<std::size_t>(step)])
            plan.set_address(context, binding.name, tables_ + binding.offset);
        plan.set_address(context, "modulation", modulation_ + static_cast<std::size_t>(row) * aligned(row_bytes_));
        plan.set_address(context, "noise", noise);
        plan.set_address(context, "state", states_[from]);
        plan.set_address(context, "next_state", states_[1 - from]);
        plan.enqueue(context, stream_.get());
    }

    Device& device_;
    Stream& stream_;
    const Gpu& gpu_;
    Memory memory_;
    const std::int64_t steps_, segment_, ahead_, rows_;  // rows: conditions of a step
    const std::vector<bool>& draws_ = std::get<1>(shape);  // [N]
    std::vector<std::int64_t> evaluations_;                // [N] E of each step
    std::size_t row_bytes_ = 0, draw_bytes_ = 0, state_bytes_ = 0;  // of one step: adaLN rows, noise, state
    std::int64_t per_call_ = 1, block_ = 1;         // steps of one conditioner call; steps whose rows are held at once
    Context conditioner_;
    std::map<std::int64_t, Context> contexts_;  // of the step graph, by E: no shape changes between steps or within a graph
    Arena arena_;
    std::vector<std::vector<Binding>> bindings_;             // [N] a step's tables
    std::vector<std::vector<Binding>> calls_;                // a conditioner call's conditions
    std::vector<Conditions> conditions_;                     // of each call
    std::vector<float> silence_;
    std::size_t silence_at_ = 0;                                                           // noise of steps without
    char *tables_ = nullptr, *modulation_ = nullptr, *states_[2] = {}, *noise_ = nullptr;  // on the device
    char *tables_host_ = nullptr, *state_host_ = nullptr, *noise_host_ = nullptr;  // pinned; states: first and final, ring
    std::vector<cudaGraphExec_t> graphs_;                                          // [segments]
};

class DeviceLoop final : public Loop {
public:
    DeviceLoop(std::shared_ptr<const Bundle> bundle, const EngineOptions& options)
        : Loop(std::move(bundle)), device_(*bundle_, options) {
        for (auto& [graph, most] : at_once_) {
            most = device_.at_most(graph.c_str(), "latent", most);
            const auto count = static_cast<std::size_t>(most);
            Pictures& made = pictures_[graph];
            made.image_bytes = bundle_->manifest.picture_size(graph).bytes();
            made.latents = device_.memory.device(count * latent_bytes());
            made.latents_host = device_.memory.pinned(count * latent_bytes());
            made.images = device_.memory.device(count * made.image_bytes);
            made.images_host = device_.memory.pinned(count * made.image_bytes);
            made.context = device_.context(graph.c_str(), {});
        }
    }
    ~DeviceLoop() override {
        try {
            device_.gpu.use();
        } catch (const Error&) {  // nothing can be freed on a device that is gone
        }
    }

    void sample(const Run& run, float* latents) override {
        for (const std::string& graph : run.program.graph)
            if (graph != "step")
                fail_request("program '" + run.program.name + "' runs graph '" + graph + "', and plans have 'step' alone");
        const std::int64_t most = device_.record.max_batch;
        if (run.tables.batch > most)
            fail_request("a batch of " + std::to_string(run.tables.batch) + " is more than the plans were built for, " +
                         std::to_string(most) + ": use a smaller batch, or build with --max-batch");
        device_.gpu.use();
        const auto same = [shape = shape_of(run)](const auto& kept) { return kept->shape == shape; };
        const auto found = std::find_if(runs_.begin(), runs_.end(), same);
        if (found != runs_.end()) {
            runs_.splice(runs_.begin(), runs_, found);
        } else {
            if (runs_.size() == kRunsKept) runs_.pop_back();
            runs_.push_front(std::make_unique<DeviceRun>(device_, run));
        }
        first_state(run.program, run.noise, nullptr, run.tables.batch, bundle_->latent_count(), runs_.front()->state());
        runs_.front()->sample(run);
        latents_of_state(run, bundle_->latent_count(), runs_.front()->state(), latents);
    }

protected:
    // Also from a callback: the work takes its place in the stream behind the steps that are enqueued.
    void decode_some(const std::string& graph, const float* latents, std::int64_t count, std::uint8_t* images) override {
        device_.gpu.use();
        const Plan& plan = *device_.plans.at(graph);
        const ModelInfo& model = bundle_->manifest.model;
        Pictures& made = pictures_.at(graph);
        const std::size_t bytes = static_cast<std::size_t>(count) * latent_bytes(), pixels = static_cast<std::size_t>(count) * made.image_bytes;
        std::memcpy(made.latents_host, latents, bytes);
        device_.stream.copy(made.latents, made.latents_host, bytes);
        plan.set_shape(*made.context, "latent", {count, model.in_channels, model.input_size, model.input_size});
        plan.set_address(*made.context, "latent", made.latents);
        plan.set_address(*made.context, "image", made.images);
        plan.enqueue(*made.context, device_.stream.get());
        device_.stream.copy(made.images_host, made.images, pixels);
        device_.stream.mark(kDecoding);
        device_.stream.wait(kDecoding);
        std::memcpy(images, made.images_host, pixels);
    }

private:
    // Buffers and the context of a graph that makes pictures.
    struct Pictures {
        Context context;
        char *latents = nullptr, *images = nullptr, *latents_host = nullptr, *images_host = nullptr;
        std::size_t image_bytes = 0;  // of one
    };

    std::size_t latent_bytes() const { return sizeof(float) * bundle_->latent_count(); }

    Device device_;
    std::list<std::unique_ptr<DeviceRun>> runs_;  // the most recently used first
    std::map<std::string, Pictures> pictures_;    // of the decoder and of the preview
};

}  // namespace

std::unique_ptr<Loop> open_device_loop(std::shared_ptr<const Bundle> bundle, const EngineOptions& options) {
    return std::make_unique<DeviceLoop>(std::move(bundle), options);
}

}  // namespace ditedge
