// One run of a program on a device (runtime/loop/device_run.py): tables up, steps enqueued a segment at a time, the sample down.
#pragma once

#include <deque>
#include <future>

#include "device_steps.hpp"

namespace ditedge {

constexpr std::size_t kEvents = kAhead;  // marks of the stream that segments take turns with

// Buffers, contexts and graphs for runs of one shape. The host stays kAhead steps in front of the device, polls events, and
// never stops the stream. The noise of the next segment is drawn while it waits. The state comes to the host where somebody
// looks at it, and at the end.
class DeviceRun {
public:
    // told: what is made of the prompts; empty where the model takes none.
    DeviceRun(Device& device, const Run& run, const OfPrompts& told);
    DeviceRun(const DeviceRun&) = delete;
    DeviceRun& operator=(const DeviceRun&) = delete;

    void sample(const Run& run, const OfPrompts& told);
    float* state() { return reinterpret_cast<float*>(ends_); }  // pinned: the first state before, the last one after

    const RunShape shape;

private:
    struct Enqueued {
        Segment segment;
        std::size_t mark;  // of its event, and of the state that it leaves for the host
    };

    void make_room(bool draws, bool looked_at);
    void enqueue_all(const Run& run, const OfPrompts& told, const std::vector<Segment>& cuts);
    std::future<void> begin_drawing(const Run& run, const Segment& segment);
    Enqueued leave(const Segment& segment, std::size_t mark);
    void deliver(const Enqueued& enqueued, const Run& run);
    char* drawn(std::int64_t step) const { return ring_ + static_cast<std::size_t>(step % slots_) * aligned(steps_.draw_bytes); }
    char* seen(std::size_t mark) const { return seen_ + mark * aligned(steps_.state_bytes); }

    Device& device_;
    Memory memory_;
    Steps steps_;
    const std::int64_t count_, slots_;                               // steps; draws that the ring holds
    char *ends_ = nullptr, *seen_ = nullptr, *ring_ = nullptr;  // pinned: first and last state, states for who looks, noise
};

}  // namespace ditedge
