"""A bundle with a second step graph."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper


def with_half_step(folder: Path) -> None:
    """Adds the graph "step-half", which gives half of what "step" gives, to the bundle in `folder`."""
    model = onnx.load(folder / "step.onnx")
    graph, output = model.graph, model.graph.output[0].name
    for node in graph.node:
        for i, name in enumerate(node.output):
            if name == output:
                node.output[i] = "whole"
    graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "half"))
    graph.node.append(helper.make_node("Mul", ["whole", "half"], [output]))
    onnx.save(model, folder / "step-half.onnx")
    data = (folder / "step-half.onnx").read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["graphs"]["step-half"] = manifest["graphs"]["step"] | {"file": "step-half.onnx"}
    manifest["files"]["step-half.onnx"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
