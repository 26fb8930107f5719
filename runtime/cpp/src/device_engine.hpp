// A graph that works once in a while on a device, as an `Engine` (runtime/loop/device_engine.py): its inputs up, its work, its
// outputs down.
#pragma once

#include "device.hpp"

namespace ditedge {

class DeviceEngine final : public Engine {
public:
    DeviceEngine(Device& device, std::string graph) : device_(device), graph_(std::move(graph)) {}
    // Also from a callback: the work takes its place in the stream behind the steps that are enqueued.
    void run(const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs) override;
    void interrupt(bool) override {}  // it is short

private:
    // Tensors side by side on the device, and pinned beside it; what was too small stays until the end, since work may use it.
    struct Room {
        char *device = nullptr, *host = nullptr;
        std::size_t bytes = 0;
    };

    void make(Room& room, const std::vector<Tensor>& tensors);

    Device& device_;
    const std::string graph_;
    std::map<std::int32_t, std::unique_ptr<Context>> contexts_;  // by profile
    Room in_, out_;
};

}  // namespace ditedge
