"""`verify --layers`: what is compared, and what came of it. polygraphy does the comparing in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...runtime.bundle.manifest import weights_file
from ...runtime.bundle.open import Bundle, open_bundle
from ...runtime.errors import EngineError, RequestError
from ...runtime.loop.engine import EngineOptions, options_for
from ...runtime.loop.engine_ort import ONNX_RUNTIME
from ...runtime.loop.engines import open_engine
from ...runtime.loop.verification import VerifyRequest
from ...runtime.plans.library import first_gpu
from ...runtime.plans.record import RECORD_NAME, read_build_record
from ...runtime.replacing import scratch_folder
from ...runtime.report import Report, silent
from ..graph.lowering import emulated
from ..graph.surgery import load_graph, save_graph
from ..quality.comparable import COMPARABLE
from ..quality.stopwatch import isolated
from .inputs import RealStep, real_step
from .prepare import Pair, prepare
from .record import GraphLayers, Layers, Measured, Side, tolerance_of
from .request import LayersOptions

POLYGRAPHY = "polygraphy is not installed: pip install 'ditedge[calibrate]' on a workstation"
CHILD = "ditedge.calibration.layers.child"


def compare_layers(request: VerifyRequest, options: LayersOptions, report: Report = silent) -> Layers:
    """Runs one step of the reference and of the engine, and measures every tensor that both have.

    Raises RequestError (what cannot be compared), BundleError, EngineError (polygraphy, the engine).
    """
    if importlib.util.find_spec("polygraphy") is None:
        raise EngineError(POLYGRAPHY)
    keys = request.trusted_keys or None
    b = open_bundle(request.engine, trusted_keys=keys)
    b.require_classes("verify --layers")
    engine = options_for(request.engine, request.options)
    target = None
    if engine.plans is not None:
        target = read_build_record(engine.plans / RECORD_NAME, b.trusted).library
    a = b if options.reference is None else open_bundle(options.reference, trusted_keys=keys)
    _check(a, b, options, engine, target)
    tolerance = options.tolerance or tolerance_of(b)
    step = real_step(a, options.step, report)
    with scratch_folder() as folder:
        pairs, same = _pairs(a, b, step, folder, engine, report)
        specification = _specification(a, b, pairs, step, folder, engine, target)
        found = _measured(specification, sum(len(pair.chunks) for pair in pairs), report)
        graphs = [_joined(pair, found) for pair in pairs]
        found.close()
    side_a, side_b = (Side(bundle.folder.absolute().name, bundle.sha256) for bundle in (a, b))
    return Layers(side_a, side_b, target or engine.provider, step.what, tolerance, graphs, same)


def _check(a: Bundle, b: Bundle, options: LayersOptions, engine: EngineOptions, target: str | None) -> None:
    if a is b and engine.plans is None and engine.provider == "cpu":
        raise RequestError(
            f"--layers compares {b.folder} with the float32 bundle that it was made from: give that with --reference, "
            "or another --provider, or a plan of it"
        )
    if any(graph.precision != "float32" for graph in a.manifest.graphs.values()) or a.manifest.quantization is not None:
        remedy = "give the float32 bundle that it was made from with --reference"
        raise RequestError(f"{a.folder} is not in float32, so it is no reference: {remedy}")
    for name, text in COMPARABLE:
        x, y = getattr(a.manifest.model, name), getattr(b.manifest.model, name)
        if x != y:
            raise RequestError(f"{b.folder} was not made from {a.folder}: {text} {y} against {x}")
    if a.manifest.source_sha256 != b.manifest.source_sha256:
        raise RequestError(f"{b.folder} was not made from {a.folder}: they come from two checkpoints")
    if target is None and not ONNX_RUNTIME.has(engine.provider):
        raise RequestError(
            f"--layers looks into ONNX Runtime and TensorRT, not into provider '{engine.provider}': leave it out"
        )
    if target is None and engine.provider != "cpu" and (reason := ONNX_RUNTIME.refusal(engine.provider)):
        raise EngineError(f"provider '{engine.provider}' {reason}: see `ditedge doctor`, or use cpu")
    if target is not None and first_gpu() is None:
        raise EngineError(f"{engine.plans}: looking into a plan needs an NVIDIA GPU and its driver: there is none")


def _pairs(
    a: Bundle, b: Bundle, step: RealStep, folder: Path, engine: EngineOptions, report: Report
) -> tuple[list[Pair], list[str]]:
    """The graphs to compare, written into `folder`; those that are the same file and so need not be."""
    rounds = engine.plans is None and engine.provider == "cpu"
    quantization = b.manifest.quantization
    smoothed = quantization is not None and bool(quantization.smoothing)
    pairs, same = [], []
    for graph in ("conditioner", step.graph, "decoder"):
        if graph == "decoder" and not {"decoder"} <= a.manifest.graphs.keys() & b.manifest.graphs.keys():
            continue
        if rounds and _hashes(a, graph) == _hashes(b, graph):
            same.append(graph)
            continue
        report(f"pairing the tensors of {graph}.onnx")
        b.require(graph)
        files = a.graph_file(graph), b.graph_file(graph)
        moved = smoothed and graph != "decoder"
        pairs.append(prepare(graph, *files, folder, letters=step.letters, rounds=rounds, smoothed=moved))
    return pairs, same


def _hashes(bundle: Bundle, graph: str) -> list[str]:
    file = bundle.manifest.graphs[graph].file  # type: ignore[index]
    files = bundle.manifest.files
    return [files[name].sha256 for name in (file, weights_file(file)) if name in files]


def _specification(
    a: Bundle, b: Bundle, pairs: list[Pair], step: RealStep, folder: Path, engine: EngineOptions, target: str | None
) -> Path:
    """Writes what the child reads. Each side's step gets the modulation that its own conditioner makes."""
    inputs = {**step.conditioner, **step.step, "latent": step.latents}
    for side, bundle in (("a", a), ("b", b)):
        np.savez(folder / f"{side}.npz", **inputs, modulation=_modulation(bundle, folder, step))  # type: ignore[arg-type]
    entries = [
        {
            "a": str(pair.a),
            "b": str(pair.b),
            "chunks": [[(pair.points[i].tensor, pair.points[i].other) for i in chunk] for chunk in pair.chunks],
        }
        for pair in pairs
    ]
    how = {"provider": engine.provider, "threads": engine.threads, "target": target}
    path = folder / "specification.json"
    path.write_text(json.dumps({**how, "inputs": [str(folder / "a.npz"), str(folder / "b.npz")], "pairs": entries}))
    return path


def _modulation(bundle: Bundle, folder: Path, step: RealStep) -> np.ndarray:
    """[U, M] float32, on the CPU; nodes in 16 bit round."""
    model = load_graph(bundle.graph_file("conditioner"))
    emulated(model)
    save_graph(model, folder / "modulation.onnx")
    rows = np.empty((step.letters["U"], bundle.manifest.modulation_width), np.float32)
    engine = open_engine(folder / "modulation.onnx", EngineOptions())
    try:
        engine.run(step.conditioner, {"modulation": rows})
    finally:
        engine.close()
    return rows


def _measured(specification: Path, chunks: int, report: Report) -> Generator[Any, None, None]:
    """What the child measured, tensor by tensor. Raises EngineError when it fails."""
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(isolated(CHILD, [str(specification)]), stdout=subprocess.PIPE, stderr=errors)
        try:
            assert child.stdout is not None
            for done in range(chunks):
                report("comparing layers", done, chunks)
                line = child.stdout.readline()
                reply = json.loads(line) if line else {"error": "the process that compares layers ended"}
                if "error" in reply:
                    child.wait()
                    why = _why(errors, ended=not line)
                    raise EngineError(reply["error"] + (f" ({why})" if why else ""))
                yield from reply["measured"]
        finally:
            child.kill()
            child.wait()
            child.stdout.close()  # type: ignore[union-attr]


def _why(errors: IO[bytes], ended: bool) -> str:
    """The error that a library logged last; of a process that ended without a reply, else its last line."""
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().split("\n")
    logged = [line for line in lines if line.startswith("[E]")]
    last = logged or (lines if ended else [""])
    return last[-1][:300] or ("no message; out of memory?" if ended else "")


def _joined(pair: Pair, found: Iterator[Any]) -> GraphLayers:
    """The points of a graph with what was measured of them."""
    measured: list[Measured] = []
    for point in pair.points:
        value = next(found) if point.other else point.reason
        if isinstance(value, str):
            measured.append(Measured(point, None, None, value))
        else:
            measured.append(Measured(point, value[0], value[1], ""))
    return GraphLayers(pair.graph, measured)
