"""A float32 bundle to a 16-bit one: graphs rewritten, checked on its own golden trajectories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..runtime.bundle.manifest import GoldenInfo, Manifest, VaeInfo
from ..runtime.bundle.open import Bundle, open_bundle
from ..runtime.bundle.writing import check_target, copy_graph
from ..runtime.errors import BundleError, RequestError
from ..runtime.loop.engine import Engine, EngineOptions
from ..runtime.loop.engines import open_engine
from ..runtime.loop.verify import LARGEST_ERROR, Replay, check_replayed
from ..runtime.report import Report, silent
from .derived import Derivation, derive_bundle
from .formats import half_format
from .formats.format import Half
from .formats.half_decoder import halve_decoder
from .graph.late_bias import add_bias_after_split
from .graph.lowering import emulated, lower
from .graph.surgery import check_graph, load_graph, save_graph
from .options import ConvertOptions
from .statistics.overflow import overflow_scan, too_large

GRAPHS = ("conditioner", "step")


def convert_bundle(source: Path, out: Path, options: ConvertOptions, report: Report = silent) -> Manifest:
    """Writes bundle `source` in 16 bit to `out`. Raises RequestError, BundleError; then nothing is left."""
    check_target(out, options.force, [source])
    form = half_format(options.precision)
    if options.max_error is not None and not 0 < options.max_error <= LARGEST_ERROR:
        raise RequestError(f"--max-error {options.max_error:g} is not above 0 and at most {LARGEST_ERROR}")
    bundle = open_bundle(source)
    bundle.require_classes("convert")
    _check_is_float32(bundle, source)
    vae = bundle.manifest.vae
    halve = options.decoder and vae is not None and vae.precision == "float32"

    def rewrite(folder: Path, scratch: Path) -> dict[str, Any]:
        graphs = _lower_graphs(bundle, form, folder, scratch, report)
        return {"graphs": graphs, "vae": _halved(bundle, folder, scratch, report) if halve else vae}

    def tolerance(replayed: Replay) -> float:
        allowed = options.max_error or _tolerance(bundle, replayed.golden, form)
        check_replayed(replayed, allowed)
        return allowed

    how = Derivation((*GRAPHS, "decoder") if halve else GRAPHS, rewrite, tolerance, emulated_engines)
    return derive_bundle(bundle, out, how, force=options.force, report=report)


def _check_is_float32(bundle: Bundle, source: Path) -> None:
    if any(bundle.manifest.graphs[name].precision != "float32" for name in GRAPHS):  # type: ignore[index]
        raise RequestError(f"{source} is already in 16 bit: convert the float32 bundle it was made from")
    if bundle.manifest.quantization is not None and bundle.manifest.quantization.form != "tensorrt":
        raise RequestError(f"{source} is quantised for ONNX Runtime: convert what `quantize --form tensorrt` makes")


def _lower_graphs(bundle: Bundle, form: Half, folder: Path, scratch: Path, report: Report) -> dict[str, Any]:
    """Writes conditioner and step -> the manifest's graphs."""
    graphs: dict[str, Any] = {str(name): graph for name, graph in bundle.manifest.graphs.items()}
    maxima = {}
    if form.overflows:
        report(f"looking for {form.dtype} overflows over a whole trajectory")
        maxima = overflow_scan(bundle, scratch, report)
    for name in GRAPHS:
        report(f"writing {name}.onnx in {form.dtype}")
        keep = too_large(maxima.get(name, {}))
        if keep:
            kept = ", ".join(sorted(keep)[:5])
            report(f"{name}: {len(keep)} tensors exceed {form.dtype}, kept in float32: {kept}")
        model, path = load_graph(bundle.graph_file(name)), folder / graphs[name].file
        if not lower(model, ir.DataType[form.dtype.upper()], keep):
            raise BundleError(
                f"{name}.onnx: every matrix product would stay in float32 ({len(keep)} tensors exceed {form.dtype}), "
                "so there is nothing to convert; use --precision bf16"
            )
        add_bias_after_split(model)
        save_graph(model, path)
        check_graph(path)
        graphs[name] = graphs[name].model_copy(update={"precision": form.dtype})
    return graphs


def _halved(bundle: Bundle, folder: Path, scratch: Path, report: Report) -> VaeInfo | None:
    """Writes the VAE's decoder in float16, or as it is where it cannot be -> what the manifest says of the VAE."""
    vae = bundle.manifest.vae
    if vae is not None and halve_decoder(bundle, folder / bundle.manifest.graphs["decoder"].file, scratch, report):
        return vae.model_copy(update={"precision": "float16"})
    copy_graph(bundle, "decoder", folder)
    return vae


def _tolerance(bundle: Bundle, golden: GoldenInfo, form: Half) -> float:
    """What 16 bit may do to a trajectory, and what quantisation had done to it before; at most LARGEST_ERROR."""
    before = golden.tolerance if bundle.manifest.quantization is not None else 0.0
    return min(LARGEST_ERROR, form.tolerance + before)


def emulated_engines(bundle: Bundle, scratch: Path, options: EngineOptions | None = None) -> dict[str, Engine]:
    """Engines of a 16-bit bundle that round as 16-bit hardware does, on the CPU. Files are left in `scratch`."""
    engines = {}
    for name in GRAPHS:
        model = load_graph(bundle.graph_file(name))
        emulated(model)
        save_graph(model, scratch / f"{name}.onnx")
        engines[name] = open_engine(scratch / f"{name}.onnx", options or EngineOptions())
    return engines
