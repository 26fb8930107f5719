"""Plans layer by layer, as far as it goes without a GPU: the plan that gives every tensor is built, and then refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from ditedge.calibration.graph.lowering import lower
from ditedge.calibration.layers.compare import _measured, compare_layers
from ditedge.calibration.layers.inputs import inputs_of, letters_of, real_step
from ditedge.calibration.layers.prepare import prepare
from ditedge.calibration.layers.request import LayersOptions
from ditedge.runtime import open_bundle
from ditedge.runtime.errors import EngineError
from ditedge.runtime.loop.verification import VerifyRequest
from ditedge.runtime.plans.library import first_gpu
from ditedge.runtime.report import silent

pytestmark = pytest.mark.skipif(first_gpu() is not None, reason="for machines without a GPU")


@pytest.mark.parametrize("dtype", ["FLOAT", "FLOAT16"])
def test_the_marked_plan_is_built(gray: Path, derived, tmp_path: Path, dtype: str) -> None:
    """By TensorRT-RTX, through polygraphy's loaders; its runner then asks for the driver that is missing."""
    pytest.importorskip("tensorrt_rtx")
    half = dtype != "FLOAT"
    b = open_bundle(
        derived("half", lambda model: half and lower(model, ir.DataType[dtype]), "float16" if half else "float32")
    )
    a = open_bundle(gray)
    inputs = inputs_of(a, real_step(a, 1, silent), tmp_path)
    letters, files = letters_of(a, inputs), (a.graph_file("step"), b.graph_file("step"))
    pair = prepare("step", *files, tmp_path, letters=letters, rounds=False, smoothed=False)
    np.savez(tmp_path / "inputs.npz", **inputs)
    chunks = [[(pair.points[i].tensor, pair.points[i].other) for i in chunk] for chunk in pair.chunks]
    specification = {
        "provider": "cpu", "threads": 1, "target": "tensorrt-rtx", "inputs": [str(tmp_path / "inputs.npz")] * 2,
        "pairs": [{"a": str(pair.a), "b": str(pair.b), "chunks": chunks}],
    }  # fmt: skip
    path = tmp_path / "specification.json"
    path.write_text(json.dumps(specification))
    with pytest.raises(EngineError, match="Could not deserialize engine.*driver version is insufficient"):
        list(_measured(path, 1, silent))  # the plan was built, and no GPU is here to load it


def test_a_plan_needs_a_gpu(gray: Path, tmp_path: Path) -> None:
    from ditedge.runtime.plans.build import build_bundle
    from ditedge.runtime.plans.options import BuildOptions

    pytest.importorskip("tensorrt_rtx")
    folder = Path(shutil.copytree(gray, tmp_path / "bundle"))
    build_bundle(open_bundle(folder), BuildOptions("tensorrt-rtx", max_batch=1))
    plan = folder / "engines" / "tensorrt-rtx" / "dit.plan"
    with pytest.raises(EngineError, match="looking into a plan needs an NVIDIA GPU and its driver: there is none"):
        compare_layers(VerifyRequest(plan), LayersOptions(True))
