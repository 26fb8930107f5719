#include "device_steps.hpp"

#include "error.hpp"

namespace ditedge {
namespace {

constexpr std::int64_t kModulationBytes = 256 << 20;  // adaLN rows on the device; more steps are computed in blocks

}  // namespace

RunShape shape_of(const StepTables& tables, const Size& latent) {
    std::vector<std::size_t> counts;
    for (const Evaluations& some : tables.evaluations) counts.push_back(some.sample.size());
    return {tables.steps, counts, tables.batch, tables.slots, tables.conditions.rows, latent, tables.prompts.size()};
}

std::vector<Segment> segments(const StepTables& tables, const std::function<bool(std::int64_t)>& looks) {
    std::vector<Segment> cut;
    std::int64_t first = 0;
    for (std::int64_t last = 1; last <= tables.steps; ++last) {
        const bool looked_at = looks(last), full = last - first == kSegment || last == tables.steps;
        const std::int64_t count = tables.evaluation_count(first);
        if (!looked_at && !full && tables.evaluation_count(last) == count) continue;
        cut.push_back({first, last, count, looked_at});
        first = last;
    }
    return cut;
}

Steps::Steps(Device& device, Memory& memory, const StepTables& tables, const Size& latent, const OfPrompts& told)
    : device_(device), memory_(memory), steps_(tables.steps), rows_(tables.conditions.rows) {
    const std::int64_t batch = tables.batch, places = std::min(kSegment, steps_);
    const std::int64_t width = device.bundle.manifest.modulation_width, c = device.bundle.manifest.model.in_channels;
    const std::int64_t h = latent.height, w = latent.width;
    row_bytes_ = sizeof(float) * static_cast<std::size_t>(rows_ * width);
    draw_bytes = sizeof(float) * static_cast<std::size_t>(batch) * device.bundle.latent_count(latent);
    state_bytes = draw_bytes * static_cast<std::size_t>(tables.slots);
    make_conditioner(tables, told);
    const std::vector<Tensor> of_prompts = told.of_step();
    const float* f32 = nullptr;  // only the shapes of these views count
    std::size_t most = 0;
    for (std::int64_t step = 0; step < steps_; ++step) {
        const std::int64_t count = tables.evaluation_count(step);
        std::unique_ptr<Context>& context = contexts_[count];
        if (context != nullptr) continue;
        std::vector<Tensor> inputs = tables.inputs(step);
        inputs.push_back(view("state", f32, {batch, tables.slots, c, h, w}));
        inputs.push_back(view("next_state", f32, {batch, tables.slots, c, h, w}));
        inputs.push_back(view("modulation", f32, {rows_, width}));
        inputs.push_back(view("noise", f32, {batch, c, h, w}));
        inputs.insert(inputs.end(), of_prompts.begin(), of_prompts.end());
        context = device.context("step", inputs);
        evaluations_[count] = record_of(tables.evaluation_inputs(step));
        most = std::max(most, evaluations_[count].bytes);
    }
    step_ = record_of(tables.row_inputs(0));
    prompts_ = record_of(of_prompts);
    if (prompts_.bytes != 0) told_ = memory_.device(prompts_.bytes), told_host_ = memory_.pinned(prompts_.bytes);
    silence_.assign(draw_bytes / sizeof(float), 0.0f);
    lay_out(tables, told);
    tables_ = memory_.device(arena_.size());
    tables_host_ = memory_.pinned(arena_.size());
    modulation_ = memory_.device(static_cast<std::size_t>(block_) * aligned(row_bytes_));
    for (char*& state : states) state = memory_.device(state_bytes);
    const auto make = [&](std::size_t stride) { return Places{memory_.device(static_cast<std::size_t>(places) * stride), stride}; };
    step_places_ = make(step_.bytes), evaluations_places_ = make(most);
    modulation_places_ = make(aligned(row_bytes_)), noise_places_ = make(aligned(draw_bytes));
}

Steps::~Steps() {
    for (const auto& graph : graphs_)
        if (graph.second != nullptr) device_.gpu.cuda.GraphExecDestroy(graph.second);
}

Steps::Record Steps::record_of(const std::vector<Tensor>& tensors) {
    Record record;
    for (const Tensor& tensor : tensors) {
        record.bindings.push_back({tensor.name, record.bytes});
        record.bytes += aligned(tensor.bytes());
    }
    return record;
}

// One call writes the rows of several steps end to end: possible where each step's begin at an aligned address.
void Steps::make_conditioner(const StepTables& tables, const OfPrompts& told) {
    const std::int64_t held = std::clamp<std::int64_t>(kModulationBytes / static_cast<std::int64_t>(row_bytes_), 1, steps_);
    if (row_bytes_ % kAlignment == 0)
        per_call_ = std::max<std::int64_t>(1, device_.at_most("conditioner", tables.conditions.values[0].name, held * rows_) / rows_);
    block_ = std::min((steps_ + per_call_ - 1) / per_call_, held / per_call_) * per_call_;
    const Conditions some = tables.conditions.of_steps(0, per_call_);
    std::vector<float> vectors;
    told.add_vectors(some, vectors);
    std::vector<Tensor> inputs = conditioner_inputs(some, vectors);
    call_ = record_of(inputs);
    const float* f32 = nullptr;
    inputs.push_back(view("modulation", f32, {per_call_ * rows_, device_.bundle.manifest.modulation_width}));
    conditioner_ = device_.context("conditioner", inputs);
}

void Steps::lay_out(const StepTables& tables, const OfPrompts& told) {
    arena_ = Arena(), step_at_.clear(), evaluations_at_.clear(), call_at_.clear(), calls_.clear(), vectors_.clear();
    const auto place = [&](const std::vector<Tensor>& tensors) {
        std::vector<std::size_t> offsets;
        for (const Tensor& tensor : tensors) offsets.push_back(arena_.place(tensor.data, tensor.bytes()));
        return offsets.front();
    };
    for (std::int64_t step = 0; step < steps_; ++step) step_at_.push_back(place(tables.row_inputs(step)));
    for (std::int64_t step = 0; step < steps_; ++step) evaluations_at_.push_back(place(tables.evaluation_inputs(step)));
    for (std::int64_t first = 0; first < steps_; first += per_call_) calls_.push_back(tables.conditions.of_steps(first, per_call_));
    vectors_.resize(calls_.size());  // whose places stay
    for (std::size_t i = 0; i < calls_.size(); ++i) {
        told.add_vectors(calls_[i], vectors_[i]);
        call_at_.push_back(place(conditioner_inputs(calls_[i], vectors_[i])));
    }
    silence_at_ = arena_.place(silence_.data(), draw_bytes);
}

void Steps::upload(const StepTables& tables, const OfPrompts& told) {
    lay_out(tables, told);
    arena_.write(tables_host_);
    device_.stream.copy(tables_, tables_host_, arena_.size());
    held_evaluations_.assign(kSegment, -1), silent_.assign(kSegment, false);
    upload_prompts(tables, told);
}

// Where other prompts lie there than those of the run before.
void Steps::upload_prompts(const StepTables& tables, const OfPrompts& told) {
    std::vector<std::string> keys;
    for (const PromptPointer& prompt : tables.prompts) keys.push_back(prompt->key);
    if (keys == there_) return;
    there_.clear();
    const std::vector<Tensor> read = told.of_step();
    for (std::size_t i = 0; i < read.size(); ++i) {
        const std::size_t at = prompts_.bindings[i].offset;
        std::memcpy(told_host_ + at, read[i].data, read[i].bytes());
        device_.stream.copy(told_ + at, told_host_ + at, read[i].bytes());
    }
    there_ = std::move(keys);
}

void Steps::stage(const Segment& segment, const StepTables& tables, const std::function<const char*(std::int64_t)>& noise) {
    const Stream& stream = device_.stream;
    const auto index = [](std::int64_t number) { return static_cast<std::size_t>(number); };
    stream.copy(step_places_.base, tables_ + step_at_[index(segment.first)], index(segment.steps()) * step_.bytes);
    stage_modulation(segment.first, segment.last);
    for (std::int64_t place = 0; place < segment.steps(); ++place) {
        const std::int64_t step = segment.first + place;
        const auto some = static_cast<std::int64_t>(tables.evaluations_of[index(step)]);
        if (held_evaluations_[index(place)] != some)
            stream.copy(evaluations_places_.at(place), tables_ + evaluations_at_[index(step)], evaluations_.at(segment.evaluations).bytes);
        held_evaluations_[index(place)] = some;
        const char* drawn = noise(step);
        if (drawn != nullptr || !silent_[index(place)])
            stream.copy(noise_places_.at(place), drawn != nullptr ? drawn : tables_ + silence_at_, draw_bytes);
        silent_[index(place)] = drawn == nullptr;
    }
}

// The adaLN rows of steps first .. last - 1 for their places; where a block begins, its computation, too.
void Steps::stage_modulation(std::int64_t first, std::int64_t last) {
    const bool dense = row_bytes_ % kAlignment == 0;
    for (std::int64_t at = first, end; at < last; at = end) {
        if (at % block_ == 0) modulate(at);
        end = dense ? std::min(last, (at / block_ + 1) * block_) : at + 1;
        const char* rows = modulation_ + static_cast<std::size_t>(at % block_) * aligned(row_bytes_);
        device_.stream.copy(modulation_places_.at(at - first), rows, static_cast<std::size_t>(end - at) * row_bytes_);
    }
}

// The block of steps that begins with `first`: a few calls of the conditioner.
void Steps::modulate(std::int64_t first) {
    const std::int64_t end = std::min(first + block_, steps_);
    for (std::int64_t at = first; at < end; at += per_call_) {
        const char* tables = tables_ + call_at_[static_cast<std::size_t>(at / per_call_)];
        for (const Binding& binding : call_.bindings) conditioner_->set_address(binding.name, const_cast<char*>(tables) + binding.offset);
        conditioner_->set_address("modulation", modulation_ + static_cast<std::size_t>(at % block_) * aligned(row_bytes_));
        conditioner_->enqueue(device_.stream.get());
    }
}

void Steps::launch(const Segment& segment) {
    const auto [found, fresh] = graphs_.try_emplace(segment.graph(), nullptr);
    if (!device_.graphs || fresh || (found->second == nullptr && !captured(segment))) return enqueue(segment);
    device_.gpu.check(device_.gpu.cuda.GraphLaunch(graphs_.at(segment.graph()), device_.stream.get()), "cudaGraphLaunch");
}

// Whether the segment is a graph now. What cannot be captured is enqueued, from here on, and that is said.
bool Steps::captured(const Segment& segment) {
    try {
        graphs_[segment.graph()] = capture(segment);
        return true;
    } catch (const Error& error) {
        device_.no_graphs(error.what());
        return false;
    }
}

cudaGraphExec_t Steps::capture(const Segment& segment) {
    const Gpu& gpu = device_.gpu;
    cudaStream_t stream = device_.stream.get();
    if (!contexts_.at(segment.evaluations)->capturable(stream)) fail_engine("TensorRT says so");
    gpu.check(gpu.cuda.StreamBeginCapture(stream, kThreadLocal), "cudaStreamBeginCapture");
    cudaGraph_t graph = nullptr;
    try {
        enqueue(segment);
    } catch (...) {
        if (gpu.cuda.StreamEndCapture(stream, &graph) == kSuccess) gpu.cuda.GraphDestroy(graph);
        throw;
    }
    gpu.check(gpu.cuda.StreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    cudaGraphExec_t executable = nullptr;
    const int error = gpu.cuda.GraphInstantiateWithFlags(&executable, graph, 0);
    gpu.cuda.GraphDestroy(graph);
    gpu.check(error, "cudaGraphInstantiateWithFlags");
    return executable;
}

void Steps::enqueue(const Segment& segment) {
    Context& context = *contexts_.at(segment.evaluations);
    for (std::int64_t place = 0; place < segment.steps(); ++place) {
        const std::int64_t from = (segment.first + place) % 2;
        for (const Binding& binding : step_.bindings) context.set_address(binding.name, step_places_.at(place) + binding.offset);
        for (const Binding& binding : evaluations_.at(segment.evaluations).bindings)
            context.set_address(binding.name, evaluations_places_.at(place) + binding.offset);
        for (const Binding& binding : prompts_.bindings) context.set_address(binding.name, told_ + binding.offset);
        context.set_address("modulation", modulation_places_.at(place));
        context.set_address("noise", noise_places_.at(place));
        context.set_address("state", states[from]);
        context.set_address("next_state", states[1 - from]);
        context.enqueue(device_.stream.get());
    }
}

}  // namespace ditedge
