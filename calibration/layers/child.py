"""The process in which polygraphy compares: it chooses between TensorRT's two libraries when it is first imported.

Reads a specification (the JSON file named on the command line), and answers with lines of JSON: for each chunk what was
measured, or an error at the end.
"""

from __future__ import annotations

import json
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import DitedgeError, EngineError, first_line
from ...runtime.loop.engine import EngineOptions
from ...runtime.loop.engine_ort import open_session

Names = list[tuple[str, str]]  # tensor of a, of b


def errors_of(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Relative error of b: of all numbers together, ||b - a|| / ||a||, and of the worst, max |b - a| / max |a|.

    Infinite where b is not finite, or not 0 where a is.
    """
    if not np.isfinite(b).all():
        return np.inf, np.inf
    difference = np.float64(b) - np.float64(a)
    pairs = (np.linalg.norm(difference), np.linalg.norm(np.float64(a))), (np.abs(difference).max(), np.abs(a).max())
    rms, largest = (float(x / y) if y > 0 else float(np.inf if x > 0 else 0) for x, y in pairs)
    return rms, largest


def compare(specification: Mapping[str, Any], pair: Mapping[str, Any], names: Names) -> list[Any]:
    """One chunk through polygraphy -> for each of `names` (error, worst error), or a sentence why there is none."""
    from polygraphy.comparator import Comparator

    found: list[Any] = []

    def measure(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> OrderedDict[str, bool]:
        for tensor, other in names:
            x, y = np.asarray(a[tensor]), np.asarray(b[other])
            same = x.shape == y.shape
            found.append(errors_of(x, y) if same else f"of shape {list(y.shape)} there, {list(x.shape)} here")
        return OrderedDict((tensor, True) for tensor, _ in names)  # the verdict is the caller's

    tensors, others = (list(dict.fromkeys(side)) for side in zip(*names, strict=True))
    inputs_a, inputs_b = ([dict(np.load(path))] for path in specification["inputs"])
    threads = specification["threads"]
    results = Comparator.run([onnx_runner(Path(pair["a"]), tensors, EngineOptions(threads=threads))], inputs_a)
    if specification["target"] is None:
        runner = onnx_runner(Path(pair["b"]), others, EngineOptions(specification["provider"], threads))
    else:
        runner = plan_runner(Path(pair["b"]), others, inputs_b[0])
    results.extend(Comparator.run([runner], inputs_b))
    Comparator.compare_accuracy(results, compare_func=measure)
    return found


def marked(path: Path, tensors: list[str]) -> Path:
    """The graph with these tensors as its outputs, beside the graph: its weights may be in a file there."""
    from onnx import TensorProto
    from polygraphy.backend.onnx import ModifyOutputs, OnnxFromPath, SaveOnnx

    out = path.with_name(f"{path.stem}-marked.onnx")
    model = ModifyOutputs(OnnxFromPath(str(path), ignore_external_data=True), outputs=tensors)()
    for output in model.graph.output:  # which are left without a type, and TensorRT wants one
        output.type.tensor_type.elem_type = output.type.tensor_type.elem_type or TensorProto.FLOAT
    SaveOnnx(model, str(out))()
    return out


def onnx_runner(path: Path, tensors: list[str], options: EngineOptions) -> Any:
    """polygraphy's runner on a session with the project's own settings: threads, exact integer sums, no TF32."""
    from polygraphy.backend.onnxrt import OnnxrtRunner

    return OnnxrtRunner(partial(open_session, marked(path, tensors), options))


def plan_runner(path: Path, tensors: list[str], inputs: Mapping[str, np.ndarray]) -> Any:
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    return TrtRunner(EngineFromBytes(partial(marked_plan, path, tensors, inputs)))


def marked_plan(path: Path, tensors: list[str], inputs: Mapping[str, np.ndarray]) -> Any:
    """A plan of the graph that also gives `tensors`, for inputs of these shapes; built without a GPU by TensorRT-RTX.

    Typed as the graph is, without TF32, as `build` does it; what is marked is not fused over.
    """
    import onnx
    from polygraphy.backend.trt import CreateConfig, EngineBytesFromNetwork, NetworkFromOnnxPath, Profile

    graph, profile = marked(path, tensors), Profile()
    for value in onnx.load(str(graph), load_external_data=False).graph.input:
        profile.add(value.name, *[inputs[value.name].shape] * 3)
    network = NetworkFromOnnxPath(str(graph), strongly_typed=True)
    return EngineBytesFromNetwork(network, config=CreateConfig(tf32=False, profiles=[profile]))()


def serve(specification: Mapping[str, Any], reply: Callable[[Mapping[str, Any]], None]) -> None:
    """Compares every chunk of every pair, and replies with what was measured. Raises EngineError."""
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.ERROR  # to the standard error, where the parent finds why a library refused
    for pair in specification["pairs"]:
        for names in pair["chunks"]:
            try:
                found = compare(specification, pair, [(a, b) for a, b in names])
            except PolygraphyException as error:
                raise EngineError(f"{Path(pair['b']).name}: {first_line(error)}") from None
            reply({"measured": found})


def _main() -> None:
    specification = json.loads(Path(sys.argv[1]).read_text())
    os.environ["POLYGRAPHY_AUTOINSTALL_DEPS"] = "0"  # it would ask pip for whatever it misses
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if specification["target"] == "tensorrt-rtx" else "0"
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is not a reply
    sys.stdout = sys.stderr

    def reply(values: Mapping[str, Any]) -> None:
        replies.write(json.dumps(values) + "\n")

    try:
        serve(specification, reply)
    except DitedgeError as error:
        reply({"error": str(error)})


if __name__ == "__main__":
    _main()
