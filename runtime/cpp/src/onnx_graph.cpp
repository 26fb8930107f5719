#include "onnx_graph.hpp"

#include <algorithm>
#include <cstdint>
#include <optional>

#include "error.hpp"

namespace ditedge {
namespace {

constexpr int kMaxNesting = 32;  // of messages: a graph in an attribute of a node of a graph is three

// One message's fields, one after another.
class Message {
public:
    Message(std::string_view whole, const std::string& place) : rest_(whole), place_(place) {}

    std::uint64_t field = 0, number = 0;  // number: of a varint
    std::string_view bytes;               // of a text or a message
    bool is_bytes = false;

    bool next() {
        if (rest_.empty()) return false;
        const std::uint64_t tag = varint();
        field = tag >> 3, number = 0, bytes = {}, is_bytes = (tag & 7) == 2;
        switch (tag & 7) {
            case 0: number = varint(); break;
            case 1: take(8); break;
            case 2: bytes = take(varint()); break;
            case 5: take(4); break;
            default: fail();
        }
        return true;
    }
    [[noreturn]] void fail() const { fail_bundle(place_ + ": not an ONNX graph"); }

private:
    std::uint64_t varint() {
        std::uint64_t value = 0;
        for (unsigned shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
            const auto byte = static_cast<unsigned char>(take(1)[0]);
            value |= std::uint64_t{byte & 0x7fu} << shift;
            if (byte < 0x80) return value;
        }
        fail();
    }
    std::string_view take(std::uint64_t count) {
        if (count > rest_.size()) fail();
        const std::string_view taken = rest_.substr(0, static_cast<std::size_t>(count));
        rest_.remove_prefix(taken.size());
        return taken;
    }

    std::string_view rest_;
    const std::string& place_;
};

enum class Kind { model, graph, node, attribute, tensor, sparse, function, training };

// Where tensors can be in a model: field `number` of a `from` is a `to`.
struct Edge {
    Kind from;
    std::uint64_t number;
    Kind to;
};
constexpr Edge kEdges[] = {
    {Kind::model, 7, Kind::graph},        {Kind::model, 20, Kind::training},    {Kind::model, 25, Kind::function},
    {Kind::graph, 1, Kind::node},         {Kind::graph, 5, Kind::tensor},       {Kind::graph, 15, Kind::sparse},
    {Kind::node, 5, Kind::attribute},     {Kind::attribute, 5, Kind::tensor},   {Kind::attribute, 6, Kind::graph},
    {Kind::attribute, 10, Kind::tensor},  {Kind::attribute, 11, Kind::graph},   {Kind::attribute, 22, Kind::sparse},
    {Kind::attribute, 23, Kind::sparse},  {Kind::sparse, 1, Kind::tensor},      {Kind::sparse, 2, Kind::tensor},
    {Kind::function, 7, Kind::node},      {Kind::function, 11, Kind::attribute}, {Kind::training, 1, Kind::graph},
    {Kind::training, 2, Kind::graph},
};

class Reader {
public:
    Reader(std::size_t most, const std::string& place) : most_(most), place_(place) {}

    OnnxGraph found;

    // depth 0: the model, 1: its graph, 2: the graph's initializers.
    void walk(std::string_view bytes, Kind kind, int depth) {
        if (depth > kMaxNesting) fail("nested more than " + std::to_string(kMaxNesting) + " deep");
        Message message(bytes, place_);
        while (message.next()) {
            if (!message.is_bytes) continue;
            const bool main = kind == Kind::graph && depth == 1;
            if (kind == Kind::tensor && message.field == 13) external(message.bytes, depth == 2);
            if (kind == Kind::node && message.field == 4 && message.bytes == "EPContext")
                fail("a node that loads another engine's file is not for a bundle");
            if (main && message.field == 11) found.inputs.push_back(tensor(message.bytes, found.inputs.size()));
            if (main && message.field == 12) found.outputs.push_back(tensor(message.bytes, found.outputs.size()));
            for (const Edge& edge : kEdges)
                if (edge.from == kind && edge.number == message.field) walk(message.bytes, edge.to, depth + 1);
        }
    }

private:
    [[noreturn]] void fail(const std::string& complaint) const { fail_bundle(place_ + ": " + complaint); }

    void external(std::string_view bytes, bool initializer) {
        std::string_view key, value;
        for (Message entry(bytes, place_); entry.next();) {
            if (entry.field == 1) key = entry.bytes;
            if (entry.field == 2) value = entry.bytes;
        }
        if (key != "location") return;
        if (!initializer) fail("only the weights of the graph itself may be in another file, '" + std::string(value.substr(0, 200)) + "'");
        found.locations.emplace(value);
        if (found.locations.size() > most_) fail("weights are in more than " + std::to_string(most_) + " other files");
    }

    // ValueInfoProto: name, type: tensor_type: elem_type, shape: dim: dim_value.
    TensorInfo tensor(std::string_view bytes, std::size_t before) const {
        TensorInfo info{"", Dtype::float32, {}};
        std::optional<std::uint64_t> element;
        bool shaped = false;
        for (Message value(bytes, place_); value.next();) {
            if (value.field == 1) info.name = value.bytes.substr(0, 200);
            if (value.field != 2) continue;
            for (Message type(value.bytes, place_); type.next();) {
                if (type.field != 1) continue;
                for (Message part(type.bytes, place_); part.next();) {
                    if (part.field == 1) element = part.number;
                    if (part.field != 2) continue;
                    shaped = true;
                    for (Message shape(part.bytes, place_); shape.next();) {
                        if (shape.field == 1) info.shape.push_back(dimension(shape.bytes));
                        if (info.shape.size() > kMaxRank) fail("tensor '" + info.name + "' has more than 8 dimensions");
                    }
                }
            }
        }
        const bool known = element == 1u || element == 2u || element == 7u;  // FLOAT, UINT8, INT64
        if (before >= kMaxTensors || !known || !shaped) fail("tensor '" + info.name + "' is not one that the manifest describes");
        info.dtype = element == 1u ? Dtype::float32 : element == 2u ? Dtype::uint8 : Dtype::int64;
        return info;
    }

    std::int64_t dimension(std::string_view bytes) const {
        std::int64_t size = -1;
        for (Message part(bytes, place_); part.next();)
            if (part.field == 1) size = part.number <= INT32_MAX ? static_cast<std::int64_t>(part.number) : -2;
        return size;
    }

    std::size_t most_;
    const std::string& place_;
};

}  // namespace

OnnxGraph read_onnx(std::string_view bytes, std::size_t most, const std::string& place) {
    Reader reader(most, place);
    reader.walk(bytes, Kind::model, 0);
    return std::move(reader.found);
}

}  // namespace ditedge
