#include "device_run.hpp"

#include "error.hpp"

namespace ditedge {

DeviceRun::DeviceRun(Device& device, const Run& run, const OfPrompts& told)
    : shape(shape_of(run.tables, run.latent)), device_(device), memory_(device.gpu), steps_(device, memory_, run.tables, run.latent, told),
      count_(run.tables.steps), slots_(std::min(kAhead + kSegment, count_)), ends_(memory_.pinned(steps_.state_bytes)) {}

// Pinned memory that not every run needs: for what is on its way, and for the segment that is drawn.
void DeviceRun::make_room(bool draws, bool looked_at) {
    if (draws && ring_ == nullptr) ring_ = memory_.pinned(static_cast<std::size_t>(slots_) * aligned(steps_.draw_bytes));
    if (looked_at && seen_ == nullptr) seen_ = memory_.pinned(kEvents * aligned(steps_.state_bytes));
}

void DeviceRun::sample(const Run& run, const OfPrompts& told) {
    const auto looks = [&](std::int64_t step) { return run.on_step != nullptr && run.wants_state(step); };
    const std::vector<Segment> cuts = segments(run.tables, looks);
    const auto is_looked_at = [](const Segment& segment) { return segment.looked_at; };
    const std::vector<bool>& draws = run.tables.draws;
    make_room(std::find(draws.begin(), draws.end(), true) != draws.end(), std::any_of(cuts.begin(), cuts.end(), is_looked_at));
    try {
        enqueue_all(run, told, cuts);
    } catch (...) {  // what is enqueued still uses this run's memory: let it end
        try {
            device_.stream.mark(0);
            device_.stream.wait(0);
        } catch (const Error&) {  // the first failure is the one to report
        }
        throw;
    }
}

void DeviceRun::enqueue_all(const Run& run, const OfPrompts& told, const std::vector<Segment>& cuts) {
    steps_.upload(run.tables, told);
    device_.stream.copy(steps_.states[0], ends_, steps_.state_bytes);
    std::deque<Enqueued> pending;
    const auto noise = [&](std::int64_t step) { return run.tables.draws[static_cast<std::size_t>(step)] ? drawn(step) : nullptr; };
    std::future<void> drawing = begin_drawing(run, cuts.front());
    for (std::size_t i = 0; i < cuts.size(); ++i) {
        const Segment& segment = cuts[i];
        while (!pending.empty() && (segment.last - pending.front().segment.first > kAhead || device_.stream.passed(pending.front().mark))) {
            deliver(pending.front(), run);
            pending.pop_front();
        }
        check_cancelled(run, segment.first);
        drawing.get();
        steps_.stage(segment, run.tables, noise);
        steps_.launch(segment);
        pending.push_back(leave(segment, i % kEvents));
        if (segment.last < count_) drawing = begin_drawing(run, cuts[i + 1]);
    }
    for (const Enqueued& enqueued : pending) deliver(enqueued, run);
}

// In a thread, into places of the ring that no enqueued work reads any more. The future waits for it when it is given up.
std::future<void> DeviceRun::begin_drawing(const Run& run, const Segment& segment) {
    const auto draw = [this, &run, segment] {
        for (std::int64_t step = segment.first; step < segment.last; ++step)
            if (run.tables.draws[static_cast<std::size_t>(step)]) run.noise(step + 1, reinterpret_cast<float*>(drawn(step)));
    };
    const auto first = run.tables.draws.begin() + static_cast<std::ptrdiff_t>(segment.first);
    const auto last = first + static_cast<std::ptrdiff_t>(segment.steps());
    const bool draws = std::find(first, last, true) != last;
    return std::async(draws ? std::launch::async | std::launch::deferred : std::launch::deferred, draw);  // no thread: here
}

// Enqueues what follows a segment: the state for who looks at it, and at the end, and the event.
DeviceRun::Enqueued DeviceRun::leave(const Segment& segment, std::size_t mark) {
    const char* state = steps_.states[segment.last % 2];
    if (segment.looked_at) device_.stream.copy(seen(mark), state, steps_.state_bytes);
    if (segment.last == count_) device_.stream.copy(ends_, state, steps_.state_bytes);
    device_.stream.mark(mark);
    return {segment, mark};
}

// Tells of a segment's steps when it is done.
void DeviceRun::deliver(const Enqueued& enqueued, const Run& run) {
    device_.stream.wait(enqueued.mark);
    if (!run.on_step) return;
    for (std::int64_t done = enqueued.segment.first + 1; done <= enqueued.segment.last; ++done) {
        const bool shown = done == enqueued.segment.last && enqueued.segment.looked_at;
        run.on_step(done, shown ? reinterpret_cast<const float*>(seen(enqueued.mark)) : nullptr);
    }
}

}  // namespace ditedge
