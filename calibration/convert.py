"""A float32 bundle to a 16-bit one: graphs rewritten, checked on its own golden trajectories, hashed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ditedge import __version__

from ..runtime.bundle.manifest import MANIFEST_NAME, GoldenInfo, Manifest
from ..runtime.bundle.open import Bundle, open_bundle
from ..runtime.bundle.writing import check_target, copy_files, hashed_files, new_bundle
from ..runtime.errors import BundleError, RequestError
from ..runtime.files import write_text
from ..runtime.loop.engine import Engine, EngineOptions
from ..runtime.loop.engines import open_engine
from ..runtime.loop.verify import LARGEST_ERROR, replay_golden
from ..runtime.report import Report, silent
from .formats.half_decoder import halve_decoder
from .graph.lowering import PRECISIONS, emulated, lower
from .graph.surgery import check_graph, save_graph
from .statistics.overflow import overflow_scan, too_large

# Relative error at any step. float16 has 11 bits and is held to 2e-2 (demo model: 4e-3, the pictures stay the same);
# bfloat16 has 8 bits, so each rounding is 8 times coarser (demo model: 2.5e-2).
TOLERANCE = {"fp16": 2e-2, "bf16": 1e-1}


def convert_bundle(
    source: Path,
    out: Path,
    precision: str,
    force: bool = False,
    report: Report = silent,
    max_error: float | None = None,
    decoder: bool = True,
) -> Manifest:
    """Writes bundle `source` in "fp16" or "bf16" to `out`. Raises RequestError, BundleError; then nothing is left.

    max_error: of a golden trajectory at any step, relative; None: TOLERANCE, and what quantisation had done before.
    decoder: a VAE's decoder, too, becomes float16.
    """
    check_target(out, force, [source])
    bundle = open_bundle(source)
    graphs = dict(bundle.manifest.graphs)
    if any(graphs[name].precision != "float32" for name in ("conditioner", "step")):
        raise RequestError(f"{source} is already in 16 bit: convert the float32 bundle it was made from")
    if bundle.manifest.quantization is not None and bundle.manifest.quantization.form != "tensorrt":
        raise RequestError(f"{source} is quantised for ONNX Runtime: convert what `quantize --runtime tensorrt` makes")
    with new_bundle(out, force, [bundle.folder]) as folder:
        maxima = {}
        if precision == "fp16":  # bfloat16 has float32's range
            report("looking for float16 overflows over a whole trajectory")
            maxima = overflow_scan(bundle, folder, report)
        rewritten = tuple(graphs[name].file for name in ("conditioner", "step"))
        copy_files(bundle, folder, rewritten)
        for name in ("conditioner", "step"):
            report(f"writing {name}.onnx in {precision}")
            keep = too_large(maxima.get(name, {}))
            if keep:
                report(f"{name}: {len(keep)} tensors exceed float16, kept in float32: {', '.join(sorted(keep)[:5])}")
            model = ir.load(bundle.graph_file(name))
            if not lower(model, precision, keep):
                raise BundleError(
                    f"{name}.onnx: every matrix product would stay in float32 ({len(keep)} tensors exceed float16), "
                    "so there is nothing to convert; use --precision bf16"
                )
            path = folder / graphs[name].file  # type: ignore[index]
            save_graph(model, path)
            check_graph(path)
            dtype = PRECISIONS[precision].name.lower()
            graphs[name] = graphs[name].model_copy(update={"precision": dtype})  # type: ignore[index]
        vae = bundle.manifest.vae
        if decoder and vae is not None and vae.precision == "float32":
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                if halve_decoder(bundle, folder / graphs["decoder"].file, Path(scratch), report):
                    vae = vae.model_copy(update={"precision": "float16"})
        golden = [
            g.model_copy(update={"tolerance": _tolerance(bundle, g, precision, max_error)})
            for g in bundle.manifest.golden
        ]
        changes: dict[str, Any] = {
            "name": out.name,
            "made_by": f"ditedge {__version__}",
            "graphs": graphs,
            "golden": golden,
            "vae": vae,
        }
        manifest = bundle.manifest.model_copy(update={**changes, "files": hashed_files(folder)})
        write_text(folder / MANIFEST_NAME, manifest.model_dump_json(indent=1) + "\n")
        report("replaying the golden trajectories, rounding as 16-bit hardware does")
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            written = open_bundle(folder, check_hashes=False, trusted_keys=())
            replay_golden(written, emulated_engines(written, Path(scratch)), report)
    return manifest


def _tolerance(bundle: Bundle, golden: GoldenInfo, precision: str, given: float | None) -> float:
    """What 16 bit may do to a trajectory, and what quantisation had done to it before; at most LARGEST_ERROR."""
    if given is not None:
        if not 0 < given <= LARGEST_ERROR:
            raise RequestError(f"--max-error {given:g} is not above 0 and at most {LARGEST_ERROR}")
        return given
    before = golden.tolerance if bundle.manifest.quantization is not None else 0.0
    return min(LARGEST_ERROR, TOLERANCE[precision] + before)


def emulated_engines(bundle: Bundle, scratch: Path, options: EngineOptions | None = None) -> dict[str, Engine]:
    """Engines of a 16-bit bundle that round as 16-bit hardware does, on the CPU. Files are left in `scratch`."""
    engines = {}
    for name in ("conditioner", "step"):
        model = ir.load(bundle.graph_file(name))
        emulated(model)
        save_graph(model, scratch / f"{name}.onnx")
        engines[name] = open_engine(scratch / f"{name}.onnx", options or EngineOptions())
    return engines
