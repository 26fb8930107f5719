// What is read of an ONNX file without an engine: its tensors, and which other files its weights are in. A bounded reader
// of the protobuf (onnx.proto) that passes over all else; docs/format.md, "Reading a bundle".
#pragma once

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "tensor_info.hpp"

namespace ditedge {

struct OnnxGraph {
    std::vector<TensorInfo> inputs, outputs;
    std::set<std::string> locations;  // of external data, as the file names them; never more than `most`
};

// Throws Error (bundle); `place` is only for messages.
OnnxGraph read_onnx(std::string_view bytes, std::size_t most, const std::string& place);

}  // namespace ditedge
