// What libraries that work on a stream of the double (gpu_double.cpp) hand to it.
#pragma once

#include <cstddef>

struct DoublePlace {
    const char* name;
    void* address;
    std::size_t bytes;
};

// Enqueues `work(data)`, which reads the inputs and writes the outputs. waits: until all of the stream is done, as a run of ONNX
// Runtime does that was not told to go on; it has to where `mixed`: some of its nodes are on the CPU. Returns whether it is let.
using DoubleRun = bool(const char* graph, void* stream, const DoublePlace* inputs, std::size_t input_count, const DoublePlace* outputs,
                       std::size_t output_count, void (*work)(void*), void* data, bool waits, bool mixed);
