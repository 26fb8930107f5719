"""A float32 bundle to a quantised one.

The tolerance of a golden trajectory becomes what this machine measured, with room for other processors' rounding, so
that `verify` on a device says whether the device computes the quantised network that was measured here, and not whether
quantisation is harmless (that is the quality report's).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..runtime.bundle.manifest import Manifest, QuantizationInfo
from ..runtime.bundle.open import Bundle, open_bundle
from ..runtime.bundle.writing import check_target, copy_graph
from ..runtime.errors import BundleError, RequestError
from ..runtime.files import write_text
from ..runtime.loop.verify import Replay
from ..runtime.report import Report, silent
from .derived import Derivation, derive_bundle
from .encoder import encoder_format, quantise_encoders, text_graphs
from .formats import quantised_format
from .formats.int8 import int8_at_rest
from .formats.int8_decoder import quantise_decoder
from .formats.smooth import smooth
from .graph.linears import Linear, find_linears
from .graph.surgery import load_graph, save_graph
from .kept import Trial, choose_kept, select_linears
from .options import QuantizeOptions
from .plan import Plan, plan_of
from .pool import Pool, check_prompts, pool_of
from .quality.compare import compare_bundles
from .quality.forecast import cost_of_report
from .quality.gate import Gate, GateFailed, check_gate_can_be_measured
from .quality.limits import check_rewritten, check_something_is_asked, gate_or_default
from .quality.pairs import samples_of_a
from .quality.report import write_report
from .statistics.collect import (
    CalibrationSet,
    Statistics,
    check_statistics_file,
    collect_statistics,
    statistics_fingerprint,
)
from .statistics.sensitivity import Rounding

GOLDEN_MARGIN = 1.5  # allowed over the measured error: another processor rounds some activations the other way
QUALITY_FOLDER = "quality"  # in the bundle: quality.json and report.html
SENSITIVITY_NAME = "sensitivity.json"  # in the bundle, where layers were ranked
# Of conditioner and context: adaLN projections, keys and values of prompts. What embeds timestep and prompt is float32.
AT_REST = ("blocks.", "final_layer.", "transformer_blocks.", "single_transformer_blocks.", "norm_out.")


def quantize_bundle(source: Path, out: Path, options: QuantizeOptions, report: Report = silent) -> Manifest:
    """Writes the quantised form of bundle `source` to `out`. Raises DitedgeError; then nothing is left behind."""
    quality = options.quality and replace(options.quality, prompts=options.quality.prompts or options.prompts)
    options = replace(options, quality=quality)
    read = [
        options.statistics,
        options.prompts,
        *([quality.features, quality.reference, quality.sample_set] if quality is not None else []),
    ]
    inputs = [path for path in read if path is not None]
    check_target(out, options.force, [source, *inputs])
    if options.statistics is not None:
        check_statistics_file(options.statistics)
    report(f"reading {source}")
    bundle = open_bundle(source)
    check_prompts(bundle, options.prompts)
    _check_gate(bundle, options)
    encoder = encoder_format(bundle, options)
    if options.text_encoder_alone:
        plan, how = None, _of_encoder(bundle, encoder, options, report)
    else:
        plan, how = _of_network(bundle, source, encoder, options, report)
    if quality is not None:
        limits = plan.format.limits if plan is not None else quantised_format(options.text_encoder).limits
        how = replace(how, judge=partial(_judge, bundle, options, limits, report))
    return derive_bundle(bundle, out, how, inputs=inputs, force=options.force, report=report)


def _of_network(
    bundle: Bundle, source: Path, encoder: str | None, options: QuantizeOptions, report: Report
) -> tuple[Plan, Derivation]:
    """What rewrites the network, and a VAE's decoder and the text encoder where they were asked for."""
    _check_is_float32(bundle, source)
    plan = plan_of(bundle, options)
    linears = find_linears(load_graph(bundle.graph_file("step")))
    _, kept = select_linears(linears, options)  # refuses unknown names now
    check_something_is_asked(source, [linear.name for linear in linears], kept)
    pool = pool_of(bundle, options.prompts, report)
    statistics = collected(bundle, pool, plan, options, report) if plan.needs_statistics else None
    decoder = ("decoder",) if options.decoder and bundle.manifest.vae is not None else ()

    def rewrite(folder: Path, scratch: Path) -> dict[str, Any]:
        info = _write_graphs(bundle, pool, plan, options, statistics, folder, scratch, report)
        if decoder:
            file = folder / bundle.manifest.graphs["decoder"].file
            info = info.model_copy(update={"decoder": quantise_decoder(bundle, file, options.form, report)})
        changes = (
            {} if encoder is None else quantise_encoders(bundle, encoder, options.prompts, folder, scratch, report)
        )
        return {"quantization": info, **changes}

    graphs = (*network_graphs(bundle), *decoder, *(text_graphs(bundle) if encoder is not None else []))
    return plan, Derivation(graphs, rewrite, partial(_tolerance, plan))


def _of_encoder(bundle: Bundle, encoder: str | None, options: QuantizeOptions, report: Report) -> Derivation:
    """What rewrites the text encoder and nothing else. Raises RequestError for a format of its that says so little."""
    if encoder is None:
        raise RequestError("--text-encoder-alone needs the format of its weights: --text-encoder int8 or int4")

    def rewrite(folder: Path, scratch: Path) -> dict[str, Any]:
        return quantise_encoders(bundle, encoder, options.prompts, folder, scratch, report)

    return Derivation(tuple(text_graphs(bundle)), rewrite)


def network_graphs(bundle: Bundle) -> list[str]:
    """Those with the network's weights: a model of classes has no context."""
    return [name for name in ("conditioner", "context", "step") if name in bundle.manifest.graphs]


def _check_is_float32(bundle: Bundle, source: Path) -> None:
    if bundle.manifest.quantization is not None:
        raise RequestError(f"{source} is quantised already: quantise the float bundle that it was made from")
    if any(bundle.manifest.graphs[name].precision != "float32" for name in network_graphs(bundle)):  # type: ignore[index]
        raise RequestError(
            f"{source} is in 16 bit: quantise the float32 bundle that it was made from, then `convert` the result "
            "(of --form tensorrt)"
        )


def _check_gate(bundle: Bundle, options: QuantizeOptions) -> None:
    """Raises RequestError, before the work, for a gate that the report could not measure, and for other pictures."""
    if options.quality is None and options.gate != Gate():
        raise RequestError("--count 0 measures no quality: take the limits out, or give a count")
    if options.quality is not None:
        check_gate_can_be_measured(options.gate, options.quality, bundle)
        samples_of_a(bundle, options.quality)


def _write_graphs(
    bundle: Bundle,
    pool: Pool,
    plan: Plan,
    options: QuantizeOptions,
    statistics: Statistics | None,
    folder: Path,
    scratch: Path,
    report: Report,
) -> QuantizationInfo:
    """Conditioner, context and step, the latter with the linears in float32 that were asked for."""
    exact, layers = bundle, statistics
    if plan.smoothing and statistics is not None:
        report("smoothing")
        exact, layers = smoothed(bundle, statistics, plan, scratch)
    at_rest = {}
    for name in (name for name in network_graphs(bundle) if name != "step"):
        report(f"quantising {name}.onnx")
        at_rest[name] = _write_at_rest(exact, name, folder)
    rounding = rounding_of(plan, layers)
    write = partial(write_step, exact, folder, rounding)
    trial = Trial(bundle, exact, pool, plan.program, folder, rounding, plan.format.bits, write)
    kept, ranked = choose_kept(trial, options, report)
    report("quantising step.onnx")
    write(kept)
    if ranked:
        write_text(folder / SENSITIVITY_NAME, json.dumps([asdict(entry) for entry in ranked], indent=1) + "\n")
    return QuantizationInfo(
        precision=options.precision,
        form=options.form,
        weights=plan.scheme.weights,
        activations=plan.scheme.activations,
        smoothing=plan.smoothing or None,
        kept=kept,
        conditioner="int8" if at_rest["conditioner"] else "float32",
        source_bundle=bundle.sha256,
        calibration=statistics.fingerprint if statistics is not None else None,
    )


def _tolerance(plan: Plan, replayed: Replay) -> float:
    """Raises BundleError for an error that a tolerance would say nothing about."""
    tolerance, most = float(f"{GOLDEN_MARGIN * replayed.worst:.2g}"), plan.scheme.ceiling
    if not tolerance <= most:  # NaN, too
        raise BundleError(
            f"the quantised network leaves the golden trajectory {replayed.golden.file}: relative error "
            f"{replayed.worst:.2f}, at most {most / GOLDEN_MARGIN:.2f} is allowed; keep more layers in float32 "
            "(--keep, --budget), or use another --precision; nothing was written"
        )
    return max(replayed.golden.tolerance, tolerance)


def _judge(
    bundle: Bundle,
    options: QuantizeOptions,
    limits: Mapping[str, float],
    report: Report,
    new: Bundle,
    replayed: float,
) -> None:
    """Compares the new bundle with the float one and adds the report. Raises GateFailed over a limit."""
    assert options.quality is not None
    report(f"quality report: {cost_of_report(bundle, options.quality, replayed)} (--count says how many)")

    def advance(what: str, done: int = 0, total: int = 0) -> None:
        report(f"quality: {what}", done, total)

    gate = gate_or_default(options.gate, limits, options.quality, bundle)
    comparison, failed = compare_bundles(bundle, new, options.quality, advance).with_gate(gate)
    if failed:
        raise GateFailed(failed)
    named = comparison.quality.b.model_copy(update={"name": new.manifest.name})  # not that of the temporary folder
    quality = comparison.quality.model_copy(update={"b": named})
    write_report(replace(comparison, quality=quality), new.folder / QUALITY_FOLDER)


def collected(bundle: Bundle, pool: Pool, plan: Plan, options: QuantizeOptions, report: Report) -> Statistics:
    """The statistics of the plan's program, from the file of an earlier run where there is one."""
    samples = options.samples or (4 if bundle.manifest.model.is_large else 32)
    points = CalibrationSet(samples=samples)
    cache = options.statistics
    if cache is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        cache = home / "ditedge" / f"{statistics_fingerprint(bundle, pool, plan.program, points)}.safetensors"
    report(f"collecting statistics: {samples} samples of {plan.program.name}")
    return collect_statistics(bundle, pool, plan.program, points, cache, report)


def smoothed(bundle: Bundle, statistics: Statistics, plan: Plan, folder: Path) -> tuple[Bundle, Statistics]:
    """The same network with smoothed weights, in `folder`, and the statistics of its linears' inputs."""
    graphs = {name: load_graph(bundle.graph_file(name)) for name in ("step", "conditioner")}
    online = plan.scheme.activations == "static"  # measured on the demo model: drift 4.5 % -> 3.1 %
    layers = smooth(graphs["step"], graphs["conditioner"], statistics, plan.smoothing, online)
    for name, model in graphs.items():
        save_graph(model, folder / bundle.manifest.graphs[name].file)  # type: ignore[index]
    for name in ("context", "position"):
        if name in bundle.manifest.graphs:
            copy_graph(bundle, name, folder)
    return Bundle(folder, bundle.manifest, bundle.sha256), layers


def rounding_of(plan: Plan, statistics: Statistics | None) -> Rounding:
    """The rewrite of the chosen linears that the plan asks for."""
    layers = statistics.layers if statistics is not None else {}
    ranges = {name: float(layer.channel_amax.max()) for name, layer in layers.items()}

    def rounding(model: Any, linears: list[Linear]) -> None:
        plan.scheme.rewrite(model, linears, ranges)

    return rounding


def write_step(exact: Bundle, folder: Path, rounding: Rounding, kept: list[str]) -> None:
    """The step graph of `exact` with every linear rounded but those in `kept`. Raises BundleError where one is not."""
    model, path = load_graph(exact.graph_file("step")), folder / exact.manifest.graphs["step"].file
    chosen = [linear for linear in find_linears(model) if linear.name not in kept]
    rounding(model, chosen)
    save_graph(model, path)
    check_rewritten(path, [linear.name for linear in chosen])


def _write_at_rest(exact: Bundle, name: str, folder: Path) -> int:
    """-> how many of its linears are int8 at rest now; a network of the user's may have none of the known names."""
    file = exact.manifest.graphs[name].file  # type: ignore[index]
    model, path = load_graph(exact.graph_file(name)), folder / file
    chosen = [linear for linear in find_linears(model) if linear.name.startswith(AT_REST)]
    int8_at_rest(model, chosen)
    save_graph(model, path)
    check_rewritten(path, [linear.name for linear in chosen])
    return len(chosen)
