#include "device_engine.hpp"

#include <cstring>

#include "device_steps.hpp"

namespace ditedge {
namespace {

constexpr std::size_t kDone = kAhead;  // the mark of this work, after those of segments

}  // namespace

void DeviceEngine::run(const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs) {
    std::unique_ptr<Context>& context = contexts_[device_.profile_of(graph_, inputs)];
    if (context == nullptr) context = device_.context(graph_, inputs);
    make(in_, inputs), make(out_, outputs);
    const auto each = [&](const Room& room, const std::vector<Tensor>& tensors, const auto& use) {
        std::size_t at = 0;
        for (const Tensor& tensor : tensors) {
            use(tensor, room.device + at, room.host + at);
            at += aligned(tensor.bytes());
        }
    };
    Stream& stream = device_.stream;
    each(in_, inputs, [&](const Tensor& tensor, char* device, char* host) {
        context->set_shape(tensor.name, tensor.shape), context->set_address(tensor.name, device);
        std::memcpy(host, tensor.data, tensor.bytes());
        stream.copy(device, host, tensor.bytes());
    });
    each(out_, outputs, [&](const Tensor& tensor, char* device, char*) {
        context->set_shape(tensor.name, tensor.shape), context->set_address(tensor.name, device);
    });
    context->enqueue(stream.get());
    each(out_, outputs, [&](const Tensor& tensor, char* device, char* host) { stream.copy(host, device, tensor.bytes()); });
    stream.mark(kDone);
    stream.wait(kDone);
    each(out_, outputs, [&](const Tensor& tensor, char*, char* host) { std::memcpy(tensor.data, host, tensor.bytes()); });
}

void DeviceEngine::make(Room& room, const std::vector<Tensor>& tensors) {
    std::size_t bytes = 0;
    for (const Tensor& tensor : tensors) bytes += aligned(tensor.bytes());
    if (bytes <= room.bytes) return;
    room = {device_.memory.device(bytes), device_.memory.pinned(bytes), bytes};
}

}  // namespace ditedge
