"""What a bundle is, in numbers: for `inspect` and for programs that choose among bundles."""

from __future__ import annotations

from typing import Any

from .bundle.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES
from .bundle.open import Bundle
from .bundle.signatures import describe_signature
from .errors import BundleError
from .json_files import read_bounded
from .loop.int8_kernels import integer_kernels
from .plans.record import RECORD_NAME


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """A JSON-ready summary: model, graphs with their memory, programs, golden trajectories, hashes."""
    manifest = bundle.manifest
    graphs: dict[str, Any] = {}
    for graph_name, graph in manifest.graphs.items():
        graphs[graph_name] = {
            "file": graph.file,
            "bytes": manifest.graph_bytes(graph_name),
            "inputs": {tensor.name: f"{tensor.dtype} {_shape(tensor.shape)}" for tensor in graph.inputs},
            "outputs": {tensor.name: f"{tensor.dtype} {_shape(tensor.shape)}" for tensor in graph.outputs},
        }
    programs: dict[str, Any] = {}
    for name in manifest.programs:
        program = bundle.program(name)
        programs[name] = {"steps": program.steps, "slots": program.slots, "made": program.made}
    return {
        "kind": "bundle",
        "name": manifest.name,
        "folder": str(bundle.folder),
        "sha256": bundle.sha256,
        "signatures": _signatures(bundle),
        "made_by": manifest.made_by,
        "source_sha256": manifest.source_sha256,
        "model": manifest.model.model_dump(),
        "schedule": manifest.schedule.model_dump() if manifest.schedule else None,
        "labels": manifest.labels,
        "quantization": manifest.quantization.model_dump() if manifest.quantization else None,
        "graphs": graphs,
        "programs": programs,
        "defaults": manifest.defaults.model_dump(),
        "golden": [golden.model_dump() for golden in manifest.golden],
        "files": {name: info.model_dump() for name, info in manifest.files.items()},
        "bytes": sum(info.bytes for info in manifest.files.values()),
        **_int8_here(bundle),
    }


def _signatures(bundle: Bundle) -> dict[str, dict[str, str | None]]:
    """Of the manifest and of each target's plans: whether they are signed, and by which key."""
    paths = [bundle.folder / MANIFEST_NAME, *sorted(bundle.folder.glob(f"engines/*/{RECORD_NAME}"))]
    return {
        path.relative_to(bundle.folder).as_posix(): describe_signature(
            path, read_bounded(path, MAX_MANIFEST_BYTES, BundleError)
        )
        for path in paths
    }


def _int8_here(bundle: Bundle) -> dict[str, Any]:
    """What an integer step graph is worth on the processor at hand; nothing for others."""
    quantization = bundle.manifest.quantization
    if quantization is None or quantization.precision != "int8" or quantization.form != "onnxruntime":
        return {}
    try:
        kernels = integer_kernels()
    except ImportError:
        return {}
    return {"int8_here": {"kernels": kernels.name, "worth": kernels.worth}}


def _shape(shape: list[int | str]) -> str:
    return "[" + ", ".join(str(dimension) for dimension in shape) + "]"
