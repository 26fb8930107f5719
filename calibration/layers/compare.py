"""`verify --layers`: what is compared, and what came of it. polygraphy does the comparing in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...runtime.bench.turns import isolated
from ...runtime.bundle.manifest import weights_file
from ...runtime.bundle.open import Bundle, open_bundle
from ...runtime.errors import EngineError, RequestError
from ...runtime.loop.engine import EngineOptions, options_for
from ...runtime.loop.engine_ort import ONNX_RUNTIME
from ...runtime.loop.verification import VerifyRequest
from ...runtime.plans.library import first_gpu
from ...runtime.plans.record import RECORD_NAME, read_build_record
from ...runtime.replacing import scratch_folder
from ...runtime.report import Report, silent
from ..quality.comparable import differences
from .inputs import Arrays, RealStep, inputs_of, letters_of, real_step
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
    engine = options_for(request.engine, request.options)
    target = None
    if engine.plans is not None:
        target = read_build_record(engine.plans / RECORD_NAME, b.trusted).library
    a = b if options.reference is None else open_bundle(options.reference, trusted_keys=keys)
    _check(a, b, options, engine, target)
    tolerance = options.tolerance or tolerance_of(b)
    step = real_step(a, options.step, report)
    with scratch_folder() as folder:
        inputs = [inputs_of(bundle, step, folder) for bundle in (a, b)]
        pairs, same = _pairs(a, b, step, letters_of(a, inputs[0]), folder, engine, report)
        specification = _specification(pairs, inputs, folder, engine, target)
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
    network = [graph for name, graph in a.manifest.graphs.items() if not name.startswith("text")]
    if any(graph.precision != "float32" for graph in network) or a.manifest.quantization is not None:
        remedy = "give the float32 bundle that it was made from with --reference"
        raise RequestError(f"{a.folder} is not in float32, so it is no reference: {remedy}")
    for text, x, y in differences(a, b):
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
    a: Bundle,
    b: Bundle,
    step: RealStep,
    letters: Mapping[str, int],
    folder: Path,
    engine: EngineOptions,
    report: Report,
) -> tuple[list[Pair], list[str]]:
    """The graphs to compare, written into `folder`; those that are the same file and so need not be.

    letters: what the variable dimensions are. Text encoders are left out: the prompts of a golden trajectory are rows.
    """
    rounds = engine.plans is None and engine.provider == "cpu"
    quantization = b.manifest.quantization
    smoothed = quantization is not None and bool(quantization.smoothing)
    pairs, same = [], []
    for graph in ("context", "conditioner", step.graph, "decoder"):
        if graph in ("context", "decoder") and graph not in a.manifest.graphs.keys() & b.manifest.graphs.keys():
            continue
        if rounds and _hashes(a, graph) == _hashes(b, graph):
            same.append(graph)
            continue
        report(f"pairing the tensors of {graph}.onnx")
        b.require(graph)
        files = a.graph_file(graph), b.graph_file(graph)
        moved = smoothed and graph not in ("context", "decoder")
        pairs.append(prepare(graph, *files, folder, letters=letters, rounds=rounds, smoothed=moved))
    return pairs, same


def _hashes(bundle: Bundle, graph: str) -> list[str]:
    file = bundle.manifest.graphs[graph].file  # type: ignore[index]
    files = bundle.manifest.files
    return [files[name].sha256 for name in (file, weights_file(file)) if name in files]


def _specification(
    pairs: list[Pair], inputs: Sequence[Arrays], folder: Path, engine: EngineOptions, target: str | None
) -> Path:
    """Writes what the child reads. inputs: of a and of b, whose step gets what its own graphs make."""
    for side, arrays in zip("ab", inputs, strict=True):
        np.savez(folder / f"{side}.npz", **arrays)  # type: ignore[arg-type]
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
