"""A float32 bundle to a 16-bit one: graphs rewritten, checked on its own golden trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..runtime.bundle.manifest import GoldenInfo, Manifest, VaeInfo
from ..runtime.bundle.open import Bundle, open_bundle
from ..runtime.bundle.writing import check_target, copy_graph
from ..runtime.errors import BundleError, RequestError
from ..runtime.loop.engine import Engine, EngineOptions
from ..runtime.loop.verify import LARGEST_ERROR, Replay, check_replayed
from ..runtime.report import Report, silent
from .derived import Derivation, derive_bundle
from .encoder import check_encoders, check_has_text, text_graphs, without_text
from .formats import half_format
from .formats.format import Half
from .formats.half_decoder import halve_decoder
from .graph.emulation import emulated_engine
from .graph.late_bias import add_bias_after_split
from .graph.lowering import lower
from .graph.surgery import check_graph, load_graph, save_graph
from .options import ConvertOptions
from .pool import check_prompts
from .statistics.overflow import overflow_scan, too_large

GRAPHS = ("conditioner", "context", "step")  # that are rewritten, where there is one; `position` is no arithmetic


def convert_bundle(source: Path, out: Path, options: ConvertOptions, report: Report = silent) -> Manifest:
    """Writes bundle `source` in 16 bit to `out`. Raises RequestError, BundleError; then nothing is left."""
    check_target(out, options.force, [source])
    bundle = open_bundle(source)
    check_prompts(bundle, options.prompts)
    if options.without_text:
        check_has_text(bundle)
    if options.precision is None:
        return _without_text(bundle, out, options, report)
    form = half_format(options.precision)
    if options.max_error is not None and not 0 < options.max_error <= LARGEST_ERROR:
        raise RequestError(f"--max-error {options.max_error:g} is not above 0 and at most {LARGEST_ERROR}")
    _check_is_float32(bundle, source)
    vae = bundle.manifest.vae
    graphs: dict[str, Any] = {str(name): graph for name, graph in bundle.manifest.graphs.items()}
    halve = options.decoder and vae is not None and vae.precision == "float32"
    encoders = text_graphs(bundle) if options.text_encoder and not options.without_text else []
    encoders = [name for name in encoders if graphs[name].precision == "float32"]  # int8 and int4 weights stay so
    rewritten = [*rewritten_graphs(bundle), *encoders]
    left_out = text_graphs(bundle) if options.without_text else []

    def rewrite(folder: Path, scratch: Path) -> dict[str, Any]:
        lowered = _lower_graphs(bundle, rewritten, form, options, folder, scratch, report)
        fields = {"graphs": lowered, "vae": _halved(bundle, folder, scratch, report) if halve else vae}
        return fields | (without_text(bundle, folder, lowered) if options.without_text else {})

    def tolerance(replayed: Replay) -> float:
        allowed = options.max_error or _tolerance(bundle, replayed.golden, form)
        check_replayed(replayed, allowed)
        return allowed

    changed = (*rewritten, *left_out, *(["decoder"] if halve else []))
    how = Derivation(changed, rewrite, tolerance, emulated_engines)
    inputs = [options.prompts] if options.prompts is not None else []
    return derive_bundle(bundle, out, how, inputs=inputs, force=options.force, report=report)


def _without_text(bundle: Bundle, out: Path, options: ConvertOptions, report: Report) -> Manifest:
    """The same bundle in the precision that it has, less its text encoder."""
    if not options.without_text:
        raise RequestError("say what the bundle becomes: --precision, --without-text, or both")
    if (options.prompts, options.max_error) != (None, None):
        raise RequestError("--without-text alone changes no graph: leave --prompts and --max-error out")
    graphs: dict[str, Any] = {str(name): graph for name, graph in bundle.manifest.graphs.items()}
    how = Derivation(tuple(text_graphs(bundle)), lambda folder, _: without_text(bundle, folder, graphs))
    return derive_bundle(bundle, out, how, force=options.force, report=report)


def rewritten_graphs(bundle: Bundle) -> list[str]:
    """Those of GRAPHS that the bundle has: a model of classes has no context."""
    return [name for name in GRAPHS if name in bundle.manifest.graphs]


def _check_is_float32(bundle: Bundle, source: Path) -> None:
    if any(bundle.manifest.graphs[name].precision != "float32" for name in rewritten_graphs(bundle)):  # type: ignore[index]
        raise RequestError(f"{source} is already in 16 bit: convert the float32 bundle it was made from")
    if bundle.manifest.quantization is not None and bundle.manifest.quantization.form != "tensorrt":
        raise RequestError(f"{source} is quantised for ONNX Runtime: convert what `quantize --form tensorrt` makes")


def _lower_graphs(
    bundle: Bundle,
    names: Sequence[str],
    form: Half,
    options: ConvertOptions,
    folder: Path,
    scratch: Path,
    report: Report,
) -> dict[str, Any]:
    """Writes these graphs -> the manifest's graphs."""
    graphs: dict[str, Any] = {str(name): graph for name, graph in bundle.manifest.graphs.items()}
    maxima = {}
    if form.overflows:
        report(f"looking for {form.dtype} overflows over a whole trajectory")
        maxima = overflow_scan(bundle, scratch, report, names, options.prompts)
    for name in names:
        _lower_graph(bundle, name, form, too_large(maxima.get(name, {})), folder, report)
        graphs[name] = graphs[name].model_copy(update={"precision": form.dtype})
    encoders = {name: folder / graphs[name].file for name in names if name in text_graphs(bundle)}
    if encoders:
        remedy = "leave it in float32 (--no-text-encoder)"
        check_encoders(bundle, encoders, options.prompts, form.tolerance, remedy, scratch, report)
    return graphs


def _lower_graph(bundle: Bundle, name: str, form: Half, keep: frozenset[str], folder: Path, report: Report) -> None:
    """Writes one graph. keep: names of its tensors that stay in float32. Raises BundleError where all would."""
    report(f"writing {name}.onnx in {form.dtype}")
    if keep:
        kept = ", ".join(sorted(keep)[:5])
        report(f"{name}: {len(keep)} tensors exceed {form.dtype}, kept in float32: {kept}")
    model, path = load_graph(bundle.graph_file(name)), folder / bundle.manifest.graphs[name].file  # type: ignore[index]
    if not lower(model, ir.DataType[form.dtype.upper()], keep):
        raise BundleError(
            f"{name}.onnx: every matrix product would stay in float32 ({len(keep)} tensors exceed {form.dtype}), "
            "so there is nothing to convert; use --precision bf16"
        )
    add_bias_after_split(model)
    save_graph(model, path)
    check_graph(path)


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
    for name in rewritten_graphs(bundle):
        engines[name] = emulated_engine(bundle.graph_file(name), scratch, options)
    return engines
