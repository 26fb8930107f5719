"""Bundle in, quantised bundle out: the order of work. Nothing appears at the target before everything succeeded.

The golden trajectories are kept: they say what PyTorch computed in float32. Their tolerance becomes what this machine
measured, with room for other processors' rounding, so that `verify` on a device says whether the device computes the
quantised network that was measured here, and not whether quantisation is harmless (that is the quality report's).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ditedge import __version__

from ..runtime.bundle import Bundle, open_bundle
from ..runtime.errors import BundleError, RequestError
from ..runtime.files import write_text
from ..runtime.manifest import MANIFEST_NAME, Manifest, QuantizationInfo
from ..runtime.new_bundle import check_target, hashed_files, new_folder
from ..runtime.sampler import Sampler
from ..runtime.verify import replay
from .int8 import dynamic_int8, int8_at_rest
from .linears import Linear, find_linears, load_graph, save_graph

GOLDEN_MARGIN = 1.5  # allowed over the measured error: another processor rounds some activations the other way
GOLDEN_MOST = 0.95  # relative error of a trajectory that has nothing to do with the recorded one any more
PROTECTED = ("final_layer.linear",)  # of the step graph; the embedders are not linears there, adaLN is elsewhere
CONDITIONER_PREFIXES = ("blocks.", "final_layer.")  # adaLN projections; the timestep MLP stays float32


@dataclass(frozen=True)
class QuantizeOptions:
    """What a user may decide about a quantised bundle."""

    precision: str = "int8"  # fp8, int4
    runtime: str = "onnxruntime"  # or "tensorrt": whose kernels the step graph is written for
    activations: str = "per-token"  # or "per-tensor"
    keep: tuple[str, ...] = ()  # linears to leave in float32, besides the protected ones
    force: bool = False  # replace an existing bundle


def quantize_bundle(
    source: Path, out: Path, options: QuantizeOptions, report: Callable[[str], None] = lambda _: None
) -> Manifest:
    """Writes the quantised form of bundle `source` to `out`. Raises DitedgeError; then nothing is left behind."""
    check_target(out, options.force)
    report(f"reading {source}")
    bundle = open_bundle(source)
    if bundle.manifest.quantization is not None:
        raise RequestError(f"{source} is quantised already: quantise the float bundle that it was made from")
    if out.exists() and out.resolve() == bundle.folder.resolve():
        raise RequestError(f"{out} is the bundle to quantise: give another --out")
    with new_folder(out, options.force) as folder:
        copy_without_graphs(bundle, folder)
        report("quantising step.onnx")
        kept = _write_step(bundle, folder, options)
        report("quantising conditioner.onnx")
        _write_conditioner(bundle, folder)
        info = QuantizationInfo(
            precision=options.precision,  # type: ignore[arg-type]  # pydantic checks it
            form=options.runtime,  # type: ignore[arg-type]
            activations=options.activations,  # type: ignore[arg-type]
            smoothing=None,
            kept=kept,
            conditioner="int8",
            source_bundle=bundle.sha256,
            calibration=None,
        )
        report("replaying golden trajectories")
        return write_manifest(bundle, folder, out.name, info)


def copy_without_graphs(bundle: Bundle, folder: Path) -> None:
    """Every file of the bundle but the conditioner and the step (and their .data files)."""
    graphs = tuple(bundle.manifest.graphs[name].file for name in ("conditioner", "step"))
    for name in bundle.manifest.files:
        if not name.startswith(graphs):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.file(name), target)


def write_manifest(bundle: Bundle, folder: Path, name: str, info: QuantizationInfo) -> Manifest:
    """Hashes what is in `folder`, measures the golden trajectories on it, and writes its manifest."""
    fields: dict[str, Any] = bundle.manifest.model_dump()
    fields |= {"name": name, "made_by": f"ditedge {__version__}", "quantization": info.model_dump()}
    fields["files"] = {key: value.model_dump() for key, value in hashed_files(folder).items()}
    manifest = Manifest.model_validate(fields)
    with Sampler(Bundle(folder, manifest, "")) as sampler:
        for golden in fields["golden"]:
            known = next(entry for entry in manifest.golden if entry.file == golden["file"])
            worst = float(np.max(replay(sampler, known).error))
            if not worst < GOLDEN_MOST:
                raise BundleError(
                    f"the quantised network leaves the golden trajectory {golden['file']} altogether (relative error "
                    f"{worst:.2f}): keep more layers in float32, or use another precision; nothing was written"
                )
            golden["tolerance"] = max(golden["tolerance"], min(GOLDEN_MOST, float(f"{GOLDEN_MARGIN * worst:.2g}")))
    manifest = Manifest.model_validate(fields)
    write_text(folder / MANIFEST_NAME, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def select_linears(linears: list[Linear], keep: tuple[str, ...]) -> tuple[list[Linear], list[str]]:
    """(to quantise, names kept in float32). keep: names, or the beginning or the end of some ("blocks.0", "fc2")."""
    for wanted in keep:
        if not any(_matches(linear.name, wanted) for linear in linears):
            raise RequestError(f"--keep-layer {wanted}: no such layer; there are {', '.join(l.name for l in linears)}")
    kept = [linear.name for linear in linears if any(_matches(linear.name, name) for name in (*PROTECTED, *keep))]
    return [linear for linear in linears if linear.name not in kept], kept


def _matches(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(f"{wanted}.") or name.endswith(f".{wanted}")


def _write_step(bundle: Bundle, folder: Path, options: QuantizeOptions) -> list[str]:
    model = load_graph(bundle.graph_file("step"))
    chosen, kept = select_linears(find_linears(model), options.keep)
    dynamic_int8(model, chosen, options.activations)
    save_graph(model, folder / bundle.manifest.graphs["step"].file)
    return kept


def _write_conditioner(bundle: Bundle, folder: Path) -> None:
    model = load_graph(bundle.graph_file("conditioner"))
    int8_at_rest(model, [linear for linear in find_linears(model) if linear.name.startswith(CONDITIONER_PREFIXES)])
    save_graph(model, folder / bundle.manifest.graphs["conditioner"].file)
