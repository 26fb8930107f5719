// Memory, order and layout of what a GPU works on.
#pragma once

#include <chrono>
#include <cstring>
#include <map>
#include <thread>
#include <vector>

#include "cuda.hpp"

namespace ditedge {

constexpr std::size_t kAlignment = 256;  // of every tensor's address: TensorRT asks for it

inline std::size_t aligned(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Device and pinned memory of one owner, freed together.
class Memory {
public:
    explicit Memory(const Gpu& gpu) : gpu_(gpu) {}
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() {
        for (void* address : device_) gpu_.cuda.Free(address);
        for (void* address : pinned_) gpu_.cuda.FreeHost(address);
    }
    char* device(std::size_t bytes) {
        gpu_.check(gpu_.cuda.Malloc(&device_.emplace_back(), aligned(bytes)), "cudaMalloc");
        return static_cast<char*>(device_.back());
    }
    char* pinned(std::size_t bytes) {
        gpu_.check(gpu_.cuda.MallocHost(&pinned_.emplace_back(), aligned(bytes)), "cudaMallocHost");
        return static_cast<char*>(pinned_.back());
    }

private:
    const Gpu& gpu_;
    std::vector<void*> device_, pinned_;
};

// Work in the order in which it was enqueued.
class Stream {
public:
    explicit Stream(const Gpu& gpu) : gpu_(gpu) {
        gpu_.check(gpu_.cuda.StreamCreateWithFlags(&stream_, kNonBlocking), "cudaStreamCreateWithFlags");
    }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    ~Stream() {
        for (cudaEvent_t event : events_) gpu_.cuda.EventDestroy(event);
        gpu_.cuda.StreamDestroy(stream_);
    }
    cudaStream_t get() const { return stream_; }
    void copy(void* to, const void* from, std::size_t bytes) const {
        gpu_.check(gpu_.cuda.MemcpyAsync(to, from, bytes, kDefaultDirection, stream_), "cudaMemcpyAsync");
    }
    // Puts a mark here, in place of an earlier one of this number.
    void mark(std::size_t number) {
        while (events_.size() <= number) {
            cudaEvent_t event = nullptr;
            gpu_.check(gpu_.cuda.EventCreateWithFlags(&event, kWithoutTimes), "cudaEventCreateWithFlags");
            events_.push_back(event);
        }
        gpu_.check(gpu_.cuda.EventRecord(events_[number], stream_), "cudaEventRecord");
    }
    bool passed(std::size_t number) const {
        const int error = gpu_.cuda.EventQuery(events_[number]);
        if (error != kNotReady) gpu_.check(error, "cudaEventQuery");
        return error == kSuccess;
    }
    void wait(std::size_t number) const {
        while (!passed(number)) std::this_thread::sleep_for(std::chrono::microseconds(100));
    }

private:
    const Gpu& gpu_;
    cudaStream_t stream_ = nullptr;
    std::vector<cudaEvent_t> events_;
};

// Arrays end to end at aligned offsets, each once. Runs of one shape lay them out alike.
class Arena {
public:
    std::size_t place(const void* data, std::size_t bytes) {
        const auto [found, fresh] = offsets_.try_emplace({data, bytes}, size_);
        if (fresh) size_ += aligned(bytes);
        return found->second;
    }
    void write(char* to) const {
        for (const auto& [array, offset] : offsets_) std::memcpy(to + offset, array.first, array.second);
    }
    std::size_t size() const { return size_; }

private:
    std::map<std::pair<const void*, std::size_t>, std::size_t> offsets_;
    std::size_t size_ = 0;
};

}  // namespace ditedge
