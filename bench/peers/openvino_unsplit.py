"""OpenVINO on the unsplit graph: float32, bfloat16, and int8 by NNCF's post-training quantisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from ditedge.runtime.loop.engine_openvino import load_openvino

from . import Evaluate, Output, Task
from .unsplit import feed, unsplit_onnx

SAMPLES = 16  # of NNCF's calibration: noise at timesteps from one end to the other


def make(task: Task, variant: str) -> Evaluate:
    """variant: "f32", "bf16" or "int8"."""
    library = load_openvino()  # without its telemetry
    core, model = library.Core(), library.Core().read_model(str(unsplit_onnx(task)))
    if variant == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RuntimeError("this processor has no bfloat16 arithmetic")
    if variant == "int8":
        model = _quantised(model, feed(task))
    precision = "bf16" if variant == "bf16" else "f32"
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": task.threads}
    request, given = core.compile_model(model, "CPU", settings).create_infer_request(), feed(task)

    def evaluate() -> Output:
        return request.infer(given, share_inputs=True, share_outputs=True)[0]

    return evaluate


def _quantised(model: Any, given: dict[str, Any]) -> Any:
    import nncf

    random = np.random.default_rng(0)
    points = [
        {
            "x": random.standard_normal(given["x"].shape, dtype=np.float32),
            "timestep": np.full_like(given["timestep"], 999 * i / (SAMPLES - 1)),
            "label": given["label"],
        }
        for i in range(SAMPLES)
    ]
    return nncf.quantize(model, nncf.Dataset(points), model_type=nncf.ModelType.TRANSFORMER, subset_size=SAMPLES)
