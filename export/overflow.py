"""Which tensors of a bundle exceed float16: the largest |value| of each over real trajectories, in float32."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..runtime.bundle import Bundle
from ..runtime.engine import Engine, EngineOptions, open_engine
from ..runtime.report import Report, silent
from ..runtime.sampler import Sampler, SeededNoise
from .precision import float_inputs, float_outputs, low_nodes, save_graph

FLOAT16_MAX = 65504.0
MARGIN = 2.0  # a scan sees some trajectories, not all: what comes within a factor of 2 is kept in float32 too
CLASSES = 4
LARGE_MODEL = 200_000_000  # parameters above which the short golden program is scanned, not the default one


class _Recorder:
    """An engine that also reads the graph's maxima and keeps the largest."""

    def __init__(self, engine: Engine, names: list[str]) -> None:
        self.engine, self.names, self.inputs = engine, names, engine.inputs
        self.largest = np.zeros(len(names), np.float32)

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        found = np.empty(len(self.names), np.float32)
        self.engine.run(inputs, {**outputs, "ditedge_maxima": found})
        self.largest = np.maximum(self.largest, np.where(np.isnan(found), np.inf, found))

    def close(self) -> None:
        self.engine.close()


def overflow_scan(bundle: Bundle, folder: Path, report: Report = silent) -> dict[str, dict[str, float]]:
    """Graph -> tensor -> largest |value|, of every tensor that float16 would hold. folder: for temporary files.

    Runs a whole program of several classes, guided where the model can be.
    """
    info, manifest = bundle.manifest.model, bundle.manifest
    large = info.parameters > LARGE_MODEL and manifest.golden
    program = bundle.program(manifest.golden[0].program if large else None)
    labels = np.linspace(0, info.num_classes - 1, min(CLASSES, info.num_classes)).astype(int).tolist()
    shape = (info.in_channels, info.input_size, info.input_size)
    maxima: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        recorders = {name: _recorder(bundle.graph_file(name), Path(scratch)) for name in ("conditioner", "step")}
        with Sampler(bundle, engines=recorders) as sampler:
            for seed, label in enumerate(labels):  # one at a time: the graph's every tensor is alive until the end
                sampler.latents(program, [label], manifest.defaults.guidance, SeededNoise([seed], shape))
                report("looking for float16 overflows, class by class", seed + 1, len(labels))
        for name, recorder in recorders.items():
            seen = zip(recorder.names, recorder.largest.tolist(), strict=True)
            maxima[name] = dict(seen) | _weight_maxima(bundle.graph_file(name))
    return maxima


def largest_while_decoding(path: Path, latents: np.ndarray, scratch: Path) -> dict[str, float]:
    """Tensor -> largest |value| of the decoder graph at `path`, as above. latents [S, C, H, W]."""
    recorder = _recorder(path, scratch)
    image = ir.load(path).graph.outputs[0]
    shape = tuple(int(size) for size in list(image.shape)[1:])
    try:
        for latent in latents:
            recorder.run({"latent": latent[None]}, {"image": np.empty((1, *shape), np.uint8)})
    finally:
        recorder.close()
    return dict(zip(recorder.names, recorder.largest.tolist(), strict=True)) | _weight_maxima(path)


def too_large(maxima: Mapping[str, float]) -> frozenset[str]:
    return frozenset(name for name, value in maxima.items() if not value * MARGIN <= FLOAT16_MAX)


def _recorder(path: Path, scratch: Path) -> _Recorder:
    model = ir.load(path)
    graph, axis = model.graph, ir.node("Constant", [], attributes={"value_ints": [1]})
    constants = set(graph.initializers.values())
    touched = [value for node in low_nodes(graph, "fp16") for value in [*float_inputs(node), *float_outputs(node)]]
    values = [value for value in dict.fromkeys(touched) if value not in constants]
    nodes, parts = [axis], []
    for value in values:
        nodes.append(ir.node("Abs", [value]))
        nodes.append(ir.node("ReduceMax", [nodes[-1].outputs[0]], attributes={"keepdims": 0}))
        nodes.append(ir.node("Reshape", [nodes[-1].outputs[0], axis.outputs[0]]))
        parts.append(nodes[-1].outputs[0])
    nodes.append(ir.node("Concat", parts, attributes={"axis": 0}))
    graph.extend(nodes)
    output = nodes[-1].outputs[0]
    output.name, output.dtype, output.shape = "ditedge_maxima", ir.DataType.FLOAT, ir.Shape([len(values)])
    graph.outputs.append(output)
    save_graph(model, scratch / path.name)
    return _Recorder(open_engine(scratch / path.name, EngineOptions()), [str(value.name) for value in values])


def _weight_maxima(path: Path) -> dict[str, float]:
    graph = ir.load(path).graph
    values = {value for node in low_nodes(graph, "fp16") for value in float_inputs(node)}
    return {
        str(v.name): float(np.abs(v.const_value.numpy()).max(initial=0)) for v in values if v.const_value is not None
    }
