"""Feature extractors for tests: two fixed matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper


def feature_model(path: Path, *, size: int = 8, classes: int = 10, inputs: int = 1, outputs: tuple[str, str]) -> Path:
    """features: 4 rows of a fixed matrix times the pixels; logits: classes rows of another."""
    rng = np.random.default_rng(3)
    nodes = [helper.make_node("Flatten", ["image"], ["flat"])]
    tensors = []
    for name, width in zip(outputs, (classes, 4), strict=True):
        weight = rng.standard_normal((size * size, width)).astype(np.float32)
        tensors.append(helper.make_tensor(f"w_{name}", TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True))
        nodes.append(helper.make_node("MatMul", ["flat", f"w_{name}"], [name]))
    images = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, size, size])]
    if inputs == 2:
        images.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["N", 1]))
    results = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width])
        for name, width in zip(outputs, (classes, 4), strict=True)
    ]
    graph = helper.make_graph(nodes, "features", images, results, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path
