"""A small ONNX file with every place that the C++ reader follows, for the fuzzer: its first byte says what it is.

python small_onnx.py > corpus/graph
"""

from __future__ import annotations

import sys

from onnx import TensorProto, helper


def small_onnx() -> bytes:
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    entry = outside.external_data.add()
    entry.key, entry.value = "location", "w.data"
    value = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=value)], "inner", [], [])
    nodes = [helper.make_node("If", ["b"], ["y"], then_branch=inner, else_branch=inner)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 2])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.INT64, [None, 1])]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, [outside]))
    function = helper.make_function("d", "f", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], [])
    model.functions.append(function)
    return model.SerializeToString()


if __name__ == "__main__":
    sys.stdout.buffer.write(b"\3" + small_onnx())
