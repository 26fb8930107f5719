"""Weights beside a graph: how much of them a process has for itself, by what Linux says of its pages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

MB = 1 << 20
MEASURE = """
import hashlib, sys
from pathlib import Path
import numpy as np
import onnxruntime
from ditedge.runtime.bundle.held_files import HeldFile, HeldGraph
from ditedge.runtime.bundle.manifest import FileInfo
from ditedge.runtime.loop.engine import EngineOptions
from ditedge.runtime.loop.engines import open_engine
def held(path):
    return HeldFile(path, FileInfo(sha256=hashlib.sha256(path.read_bytes()).hexdigest(), bytes=path.stat().st_size))
def own():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Anonymous"))  # pages of no file
folder, share = Path(sys.argv[1]), sys.argv[2] == "shared"
graph = HeldGraph(held(folder / "g.onnx"), {"g.onnx.data": held(folder / "g.onnx.data")})
open_engine(folder / "small.onnx", EngineOptions()).close()
before = own()
engine = open_engine(graph, EngineOptions(threads=1, share_weights=share))
y = np.empty((2, 64), np.float32)
engine.run({"x": np.ones((2, 4096), np.float32)}, {"y": y})
print(own() - before, y.sum())
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="this system does not say whose pages are")
def test_processes_share_the_pages_of_weights_on_demand(tmp_path: Path) -> None:
    """32 MB of them. Without the option a process holds one copy, in its kernels' order, and not two or three."""
    rng = np.random.default_rng(0)
    weights = {"a": rng.standard_normal((4096, 2032), np.float32), "b": rng.standard_normal((2032, 64), np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, w]) for n, w in (("x", 4096), ("y", 64))]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "g.onnx", save_as_external_data=True, location="g.onnx.data")
    small = helper.make_graph([helper.make_node("Neg", ["x"], ["h"])], "s", ends[:1], [
        helper.make_tensor_value_info("h", TensorProto.FLOAT, [2, 4096])])  # fmt: skip
    model = helper.make_model(small, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "small.onnx")

    def measured(how: str) -> tuple[float, float]:
        command = [sys.executable, "-c", MEASURE, str(tmp_path), how]
        own, total = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return float(own), float(total)

    size = sum(array.nbytes for array in weights.values()) / MB
    (packed, one), (shared, other) = measured("packed"), measured("shared")
    assert 0.9 * size < packed < 1.4 * size and shared < 0.2 * size
    assert other == pytest.approx(one, rel=1e-3)  # sums in another order
