// The steps of a run as they are enqueued (runtime/loop/device_steps.py): contexts of the graphs, the places that they read,
// CUDA graphs. A graph is a few steps, and holds addresses alone. What differs between steps is copied, on the device, into
// a few places before it is launched. So one graph serves every segment of its kind, in every run of a shape, and a program
// of 1000 steps has as many as one of 10.
#pragma once

#include <array>
#include <tuple>

#include "device.hpp"
#include "tables.hpp"
#include "text_graphs.hpp"

namespace ditedge {

constexpr std::int64_t kSegment = 4;           // steps of one CUDA graph at most
constexpr std::int64_t kAhead = 2 * kSegment;  // steps that are enqueued at most: what a cancel waits for

// What buffers and graphs depend on: steps, E of each of the steps' evaluations, batch, slots, rows, size, prompts.
using RunShape = std::tuple<std::int64_t, std::vector<std::size_t>, std::int64_t, std::int64_t, std::int64_t, Size, std::size_t>;
RunShape shape_of(const StepTables& tables, const Size& latent);

// Steps first .. last - 1, each with as many evaluations, enqueued together. looked_at: somebody looks at the state after them.
struct Segment {
    std::int64_t first = 0, last = 0, evaluations = 0;
    bool looked_at = false;

    std::int64_t steps() const { return last - first; }
    // Segments with the same one run the same kernels on the same addresses.
    std::array<std::int64_t, 3> graph() const { return {steps(), evaluations, first % 2}; }
};

// The steps in order. looks: whether somebody looks at the state after n steps (1 .. N).
std::vector<Segment> segments(const StepTables& tables, const std::function<bool(std::int64_t)>& looks);

// Contexts, tables, places, two states that take turns, and graphs for runs of one shape.
class Steps {
public:
    // told: what is made of the prompts; empty where the model takes none.
    Steps(Device& device, Memory& memory, const StepTables& tables, const Size& latent, const OfPrompts& told);
    Steps(const Steps&) = delete;
    Steps& operator=(const Steps&) = delete;
    ~Steps();  // only when nothing is enqueued

    void upload(const StepTables& tables, const OfPrompts& told);  // only when no earlier upload is under way
    // Enqueues the copies into the places. noise(step): where it lies on the host, null for a step that adds none.
    void stage(const Segment& segment, const StepTables& tables, const std::function<const char*(std::int64_t)>& noise);
    // Enqueues a segment that was staged: plainly the first time of its kind, from the second on as a graph. So a graph that
    // would run once is not made, and TensorRT has allocated, which capture forbids.
    void launch(const Segment& segment);

    char* states[2] = {};                          // on the device: step n reads n % 2
    std::size_t draw_bytes = 0, state_bytes = 0;  // of a step's noise, of a state

private:
    struct Binding {
        const char* name;
        std::size_t offset;
    };
    // Tensors side by side, each at an aligned offset.
    struct Record {
        std::vector<Binding> bindings;
        std::size_t bytes = 0;
    };
    // Buffers of the device that a segment's steps read, one beside the other, each `stride` long.
    struct Places {
        char* base = nullptr;
        std::size_t stride = 0;
        char* at(std::int64_t place) const { return base + static_cast<std::size_t>(place) * stride; }
    };

    static Record record_of(const std::vector<Tensor>& tensors);
    void make_conditioner(const StepTables& tables, const OfPrompts& told);
    void lay_out(const StepTables& tables, const OfPrompts& told);
    void upload_prompts(const StepTables& tables, const OfPrompts& told);
    void stage_modulation(std::int64_t first, std::int64_t last);
    void modulate(std::int64_t first);
    bool captured(const Segment& segment);
    cudaGraphExec_t capture(const Segment& segment);
    void enqueue(const Segment& segment);

    Device& device_;
    Memory& memory_;
    const std::int64_t steps_, rows_;  // rows: conditions of a step
    std::size_t row_bytes_ = 0;        // adaLN rows of one step
    std::int64_t per_call_ = 1, block_ = 1;  // steps of one conditioner call; steps whose rows are held at once
    std::unique_ptr<Context> conditioner_;
    std::map<std::int64_t, std::unique_ptr<Context>> contexts_;  // of the step graph, by E: no shape changes within a graph
    std::map<std::int64_t, Record> evaluations_;   // by E
    Record step_, call_, prompts_;                 // of the tables of a step, of a conditioner call, of what is made of prompts
    Arena arena_;
    std::vector<std::size_t> step_at_, evaluations_at_, call_at_;  // in the arena
    std::vector<Conditions> calls_;
    std::vector<std::vector<float>> vectors_;  // of the prompts of each call
    std::vector<float> silence_;
    std::size_t silence_at_ = 0;
    char *tables_ = nullptr, *tables_host_ = nullptr, *modulation_ = nullptr, *told_ = nullptr, *told_host_ = nullptr;
    std::vector<std::string> there_;  // keys of the prompts whose context lies on the device
    Places step_places_, evaluations_places_, modulation_places_, noise_places_;
    std::vector<std::int64_t> held_evaluations_;   // by place: which lie there already, -1 for none
    std::vector<bool> silent_;                     // by place
    std::map<std::array<std::int64_t, 3>, cudaGraphExec_t> graphs_;  // by kind of segment; null: it ran once
};

}  // namespace ditedge
