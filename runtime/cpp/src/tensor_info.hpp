// A tensor of a graph, as the manifest promises it or as the ONNX file has it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace ditedge {

// The bounds of docs/format.md, "Limits": of a graph's inputs or outputs, and of their dimensions.
constexpr std::size_t kMaxTensors = 16, kMaxRank = 8;

enum class Dtype { float32, int64, uint8 };

struct TensorInfo {
    std::string name;
    Dtype dtype;
    std::vector<std::int64_t> shape;  // -1: dynamic
};

}  // namespace ditedge
