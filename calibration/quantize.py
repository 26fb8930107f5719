"""Bundle in, quantised bundle out: the order of work. Nothing appears at the target before everything succeeded.

The golden trajectories are kept: they say what PyTorch computed in float32. Their tolerance becomes what this machine
measured, with room for other processors' rounding, so that `verify` on a device says whether the device computes the
quantised network that was measured here, and not whether quantisation is harmless (that is the quality report's).
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ditedge import __version__

from ..runtime.bundle.manifest import MANIFEST_NAME, Manifest, QuantizationInfo
from ..runtime.bundle.open import Bundle, open_bundle
from ..runtime.bundle.writing import check_target, copy_files, hashed_files, new_bundle
from ..runtime.errors import BundleError, RequestError
from ..runtime.files import write_text
from ..runtime.loop.session import Session
from ..runtime.loop.verify import replay
from ..runtime.replacing import scratch_beside
from ..runtime.report import Report, silent
from ..runtime.samplers.program import Program
from .formats.decoder import quantise_decoder
from .formats.dynamic_int8 import dynamic_int8, int8_at_rest
from .formats.smooth import STRENGTH, smooth
from .formats.static import blockwise_int4, static_fp8, static_int8
from .graph.linears import Linear, find_linears
from .graph.surgery import load_graph, save_graph
from .quality.compare import CompareRequest, compare_bundles
from .quality.forecast import cost_of_report
from .quality.limits import ceiling, check_rewritten, check_something_is_asked, gate_or_default
from .quality.record import Gate, GateFailed, check_gate_can_be_measured
from .quality.report import write_report
from .statistics.collect import CalibrationSet, Statistics, collect_statistics, statistics_fingerprint
from .statistics.sensitivity import (
    Rounding,
    Sensitivity,
    drift,
    fewest_kept,
    latents_of,
    layer_sensitivities,
)

GOLDEN_MARGIN = 1.5  # allowed over the measured error: another processor rounds some activations the other way
PRECISIONS, RUNTIMES = ("int8", "fp8", "int4"), ("onnxruntime", "tensorrt")
FIRST_FP8_GPU = 89  # Ada; NVIDIA's compute capability 8.9
QUALITY_FOLDER = "quality"  # in the bundle: quality.json and report.html
SENSITIVITY_NAME = "sensitivity.json"  # in the bundle, where layers were ranked
PROTECTED = ("final_layer.linear",)  # of the step graph; the embedders are not linears there, adaLN is elsewhere
CONDITIONER_PREFIXES = ("blocks.", "final_layer.")  # adaLN projections; the timestep MLP stays float32


@dataclass(frozen=True)
class QuantizeOptions:
    """What a user may decide about a quantised bundle. None: what suits the precision and the runtime."""

    precision: str = "int8"  # fp8, int4
    runtime: str = "onnxruntime"  # or "tensorrt": whose kernels the step graph is written for
    smoothing: float | None = None  # SmoothQuant's alpha, 0 .. 1; 0 is off
    protect: bool = True  # leave the final layer in float32
    decoder: bool = True  # a VAE's decoder, too: int8 weights at rest
    naive: bool = False  # static scales, one per tensor, nothing smoothed or protected: the baseline to beat
    keep: tuple[str, ...] = ()  # linears to leave in float32, besides the protected ones
    keep_count: int | None = None  # leave the N linears in float32 that gain most per byte
    budget: float | None = None  # leave as few in float32 as keep the drift of final latents within this
    target: str | None = None  # GPU architecture, "sm86": refused when it has no such arithmetic
    program: str | None = None  # for calibration: a ready program's name
    sampler: str | None = None  # ... or these
    steps: int | None = None
    samples: int | None = None  # of the calibration set
    statistics: Path | None = None  # file to keep the statistics in
    quality: CompareRequest | None = None  # what is sampled for the report in the bundle; None: no report
    gate: Gate = Gate()  # limits that the report must keep
    force: bool = False  # replace an existing bundle


@dataclass(frozen=True)
class _Plan:
    """The options with every default filled in."""

    options: QuantizeOptions
    activations: str
    weights: str
    smoothing: float | None
    program: Program

    @property
    def needs_statistics(self) -> bool:
        return self.activations == "static" or self.smoothing is not None


def drift_budget(text: str) -> float:
    """ "drift=0.02" -> 0.02. Raises RequestError."""
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if name.strip() != "drift" or not 0 < number < 1:
        raise RequestError(f"--budget {text}: write drift=X with X between 0 and 1, such as drift=0.02")
    return number


def report_images(bundle: Bundle) -> int:
    """How many images the quality report samples when nobody says."""
    return 2 if bundle.manifest.model.is_large else 32


def quantize_bundle(source: Path, out: Path, options: QuantizeOptions, report: Report = silent) -> Manifest:
    """Writes the quantised form of bundle `source` to `out`. Raises DitedgeError; then nothing is left behind."""
    quality = options.quality or CompareRequest()
    inputs = [path for path in (source, options.statistics, quality.features, quality.reference) if path is not None]
    check_target(out, options.force, inputs)
    report(f"reading {source}")
    bundle = open_bundle(source)
    if bundle.manifest.quantization is not None:
        raise RequestError(f"{source} is quantised already: quantise the float bundle that it was made from")
    if any(bundle.manifest.graphs[name].precision != "float32" for name in ("conditioner", "step")):
        raise RequestError(
            f"{source} is in 16 bit: quantise the float32 bundle that it was made from, then `convert` the result "
            "(of --runtime tensorrt)"
        )
    _check_gate(bundle, options)
    plan = _plan(bundle, options)
    linears = find_linears(load_graph(bundle.graph_file("step")))
    _, kept = select_linears(linears, options.keep, options.protect and not options.naive)  # refuses unknown names now
    check_something_is_asked(source, [linear.name for linear in linears], kept)
    statistics = _statistics(bundle, plan, report) if plan.needs_statistics else None
    with new_bundle(out, options.force, inputs) as folder, scratch_beside(out) as work:
        rewritten = tuple(bundle.manifest.graphs[name].file for name in ("conditioner", "step"))
        copy_files(bundle, folder, rewritten)
        exact, layers = bundle, statistics
        if plan.smoothing is not None and statistics is not None:
            report("smoothing")
            exact, layers = _smoothed(bundle, statistics, plan, work)
        report("quantising conditioner.onnx")
        at_rest = _write_conditioner(exact, folder)
        rounding = _rounding(plan, layers)
        kept, ranked = _choose_kept(bundle, exact, plan, rounding, folder, report)
        report("quantising step.onnx")
        _write_step(exact, folder, rounding, kept)
        if ranked:
            text = json.dumps([asdict(entry) for entry in ranked], indent=1)
            write_text(folder / SENSITIVITY_NAME, text + "\n")
        info = QuantizationInfo(
            precision=options.precision,  # type: ignore[arg-type]  # pydantic checks it
            form=options.runtime,  # type: ignore[arg-type]
            weights=plan.weights,  # type: ignore[arg-type]
            activations=plan.activations,  # type: ignore[arg-type]
            smoothing=plan.smoothing,
            kept=kept,
            conditioner="int8" if at_rest else "float32",
            decoder=_write_decoder(bundle, folder, options, report),
            source_bundle=bundle.sha256,
            calibration=statistics.fingerprint if statistics is not None else None,
        )
        report("replaying golden trajectories")
        start = time.monotonic()
        manifest = write_manifest(bundle, folder, out.name, info)
        seconds = time.monotonic() - start
        if options.quality is not None:
            gate = gate_or_default(options.gate, options.precision, pictures="decoder" in bundle.manifest.graphs)
            report(f"quality report: {cost_of_report(bundle, options.quality, seconds)} (--count says how many)")
            manifest = _judge(bundle, folder, options.quality, gate, report)
    return manifest


def _write_decoder(bundle: Bundle, folder: Path, options: QuantizeOptions, report: Report) -> Literal["int8"] | None:
    """What the manifest says of it: None for pixels and where it is to be left alone."""
    if bundle.manifest.vae is None or not options.decoder:
        return None
    report("quantising decoder.onnx")
    psnr = quantise_decoder(bundle, folder / bundle.manifest.graphs["decoder"].file)
    report(f"decoder with int8 weights: PSNR of the decoded pictures {psnr:.1f} dB")
    return "int8"


def _judge(bundle: Bundle, folder: Path, request: CompareRequest, gate: Gate, report: Report) -> Manifest:
    """Compares the new bundle in `folder` with the float one and adds the report. Raises GateFailed over a limit."""

    def advance(what: str, done: int, total: int) -> None:
        report(f"quality: {what}", done, total)

    new = open_bundle(folder, trusted_keys=())  # our own, which nobody signed yet
    comparison, failed = compare_bundles(bundle, new, request, advance).with_gate(gate)
    if failed:
        raise GateFailed(failed)
    named = comparison.quality.b.model_copy(update={"name": new.manifest.name})  # not that of the temporary folder
    quality = comparison.quality.model_copy(update={"b": named})
    write_report(replace(comparison, quality=quality), folder / QUALITY_FOLDER)
    manifest = new.manifest.model_copy(update={"files": hashed_files(folder)})
    write_text(folder / MANIFEST_NAME, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def _check_gate(bundle: Bundle, options: QuantizeOptions) -> None:
    """Raises RequestError, before the work, for a gate that the report could not measure."""
    request = options.quality
    if request is None and options.gate != Gate():
        raise RequestError("--count 0 measures no quality: take the limits out, or give a count")
    if request is not None:
        check_gate_can_be_measured(
            options.gate,
            features=request.features is not None,
            reference=request.reference is not None,
            decoder="decoder" in bundle.manifest.graphs,
            speed=request.speed_rounds > 0,
        )


def write_manifest(bundle: Bundle, folder: Path, name: str, info: QuantizationInfo) -> Manifest:
    """Hashes what is in `folder`, measures the golden trajectories on it, and writes its manifest."""
    fields: dict[str, Any] = bundle.manifest.model_dump()
    fields |= {"name": name, "made_by": f"ditedge {__version__}", "quantization": info.model_dump()}
    fields["files"] = {key: value.model_dump() for key, value in hashed_files(folder).items()}
    manifest, most = Manifest.model_validate(fields), ceiling(info.precision, info.weights)
    with Session(Bundle(folder, manifest, "")) as session:
        for golden in fields["golden"]:
            known = next(entry for entry in manifest.golden if entry.file == golden["file"])
            worst = float(np.max(replay(session, known).error))
            tolerance = float(f"{GOLDEN_MARGIN * worst:.2g}")
            if not tolerance <= most:  # NaN, too
                raise BundleError(
                    f"the quantised network leaves the golden trajectory {golden['file']}: relative error {worst:.2f}, "
                    f"at most {most / GOLDEN_MARGIN:.2f} is allowed; keep more layers in float32 (--keep, "
                    "--budget), or use another --precision; nothing was written"
                )
            golden["tolerance"] = max(golden["tolerance"], tolerance)
    manifest = Manifest.model_validate(fields)
    write_text(folder / MANIFEST_NAME, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def select_linears(
    linears: list[Linear], keep: tuple[str, ...], protect: bool = True
) -> tuple[list[Linear], list[str]]:
    """(to quantise, names kept in float32). keep: names, or the beginning or the end of some ("blocks.0", "fc2")."""
    for wanted in keep:
        if not any(_matches(linear.name, wanted) for linear in linears):
            raise RequestError(f"--keep-layer {wanted}: no such layer; there are {', '.join(l.name for l in linears)}")
    wanted_names = (*PROTECTED, *keep) if protect else keep
    kept = [linear.name for linear in linears if any(_matches(linear.name, name) for name in wanted_names)]
    return [linear for linear in linears if linear.name not in kept], kept


def _matches(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(f"{wanted}.") or name.endswith(f".{wanted}")


def _plan(bundle: Bundle, options: QuantizeOptions) -> _Plan:
    """Fills the defaults in. Raises RequestError for options that do not go together."""
    dynamic = options.precision == "int8" and options.runtime == "onnxruntime" and not options.naive
    if options.precision not in PRECISIONS or options.runtime not in RUNTIMES:
        raise RequestError(
            f"precision '{options.precision}' for runtime '{options.runtime}': "
            f"known are {', '.join(PRECISIONS)} and {', '.join(RUNTIMES)}"
        )
    if options.naive and (options.precision != "int8" or options.smoothing or options.keep or options.budget):
        raise RequestError("--naive is plain static int8, with nothing smoothed, kept or chosen: leave the rest out")
    if options.smoothing is not None and not 0 <= options.smoothing <= 1:
        raise RequestError(f"--smoothing {options.smoothing} is not between 0 and 1")
    if options.keep_count is not None and options.budget is not None:
        raise RequestError("--keep and --budget both say how many layers stay in float32: give one of them")
    _check_gpu(options)
    activations = "per-token" if dynamic else "static"
    smoothing = options.smoothing
    if options.precision == "int4":
        activations, smoothing = "float32", None
    elif smoothing is None and options.precision == "int8" and not dynamic and not options.naive:
        smoothing = STRENGTH
    weights = "blocks" if options.precision == "int4" else "per-tensor" if options.naive else "per-channel"
    if options.program is not None:
        program = bundle.program(options.program)
    else:
        program = bundle.program(sampler=options.sampler, steps=options.steps)
    return _Plan(options, activations, weights, smoothing or None, program)


def _check_gpu(options: QuantizeOptions) -> None:
    if options.target is None:
        return
    number = options.target.lower().removeprefix("sm").replace("_", "").replace(".", "")
    if not number.isdigit():
        raise RequestError(f"--target {options.target} is not a GPU architecture such as sm86 or sm89")
    if options.precision == "fp8" and int(number) < FIRST_FP8_GPU:
        raise RequestError(
            f"--precision fp8: sm{number} has no FP8 arithmetic, which begins with sm{FIRST_FP8_GPU}; use int8"
        )


def _statistics(bundle: Bundle, plan: _Plan, report: Report) -> Statistics:
    options = plan.options
    samples = options.samples or (4 if bundle.manifest.model.is_large else 32)
    points = CalibrationSet(samples=samples)
    cache = options.statistics
    if cache is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        cache = home / "ditedge" / f"{statistics_fingerprint(bundle, plan.program, points)}.safetensors"
    report(f"collecting statistics: {samples} samples of {plan.program.name}")

    def advance(done: int, total: int) -> None:
        report("collecting statistics, sampler steps", done, total)

    return collect_statistics(bundle, plan.program, points, cache, advance)


def _smoothed(bundle: Bundle, statistics: Statistics, plan: _Plan, folder: Path) -> tuple[Bundle, Statistics]:
    """The same network with smoothed weights, in `folder`, and the statistics of its linears' inputs."""
    graphs = {name: load_graph(bundle.graph_file(name)) for name in ("step", "conditioner")}
    assert plan.smoothing is not None
    online = plan.activations == "static"  # measured on the demo model: drift 4.5 % -> 3.1 %
    layers = smooth(graphs["step"], graphs["conditioner"], statistics, plan.smoothing, online)
    for name, model in graphs.items():
        save_graph(model, folder / bundle.manifest.graphs[name].file)  # type: ignore[index]
    return Bundle(folder, bundle.manifest, bundle.sha256), layers


def _rounding(plan: _Plan, statistics: Statistics | None) -> Rounding:
    """The rewrite of the chosen linears that the plan asks for."""
    precision, runtime = plan.options.precision, plan.options.runtime
    if precision == "int4":
        return lambda model, linears: blockwise_int4(model, linears, runtime)
    if plan.activations != "static":
        return dynamic_int8
    assert statistics is not None
    amax = {name: float(layer.channel_amax.max()) for name, layer in statistics.layers.items()}
    if precision == "fp8":
        return lambda model, linears: static_fp8(model, linears, amax)
    return lambda model, linears: static_int8(model, linears, amax, plan.weights == "per-channel")


def step_graphs_of_groups(source: Path, options: QuantizeOptions, folder: Path, report: Report = silent) -> list[Path]:
    """The static step graph once per timestep group, in the order of sampling, each with its own group's scales.

    No runtime switches graphs within a trajectory: this is for measuring what timestep groups would be worth.
    """
    bundle = open_bundle(source)
    plan = _plan(bundle, options)
    exact, layers = _smoothed(bundle, _statistics(bundle, plan, report), plan, folder)
    groups = len(next(iter(layers.layers.values())).rows)
    paths = [folder / f"step-{group}.onnx" for group in range(groups)]
    for group, path in enumerate(paths):
        amax = {
            name: float(np.maximum(np.abs(layer.channel_max[group]), np.abs(layer.channel_min[group])).max())
            for name, layer in layers.layers.items()
        }
        model = load_graph(exact.graph_file("step"))
        chosen, _ = select_linears(find_linears(model), options.keep, options.protect)
        static_int8(model, chosen, amax)
        save_graph(model, path)
    return paths


def _choose_kept(
    bundle: Bundle, exact: Bundle, plan: _Plan, rounding: Rounding, folder: Path, report: Report
) -> tuple[list[str], list[Sensitivity]]:
    """Names of the linears to leave in float32, and the measured ranking where one was asked for.

    bundle: what it is measured against. exact: the same network, smoothed. folder: where trials are written.
    """
    options = plan.options
    linears = find_linears(load_graph(exact.graph_file("step")))
    chosen, kept = select_linears(linears, options.keep, options.protect and not options.naive)
    if options.keep_count is None and options.budget is None:
        return kept, []
    names, bits = [linear.name for linear in chosen], 4 if options.precision == "int4" else 8
    ranked = layer_sensitivities(exact, plan.program, names, rounding, bits, report)
    order = [entry.layer for entry in ranked]
    count = min(options.keep_count or 0, len(order))
    if options.budget is not None:
        reference = latents_of(bundle, plan.program)

        def drift_with(more: list[str]) -> float:
            _write_step(exact, folder, rounding, [*kept, *more])
            measured = drift(latents_of(Bundle(folder, bundle.manifest, ""), plan.program), reference)
            report(f"{len(more)} layers kept: drift {measured:.4f}")
            return measured

        found = fewest_kept(order, drift_with, options.budget)
        if found is None:
            raise RequestError(
                f"--budget drift={options.budget:g}: not reached even with every linear in float32, because the "
                "conditioner's weights are rounded, too; allow more"
            )
        count = found[0]
    check_something_is_asked(bundle.folder, [linear.name for linear in linears], kept + order[:count])
    return kept + order[:count], ranked


def _write_step(exact: Bundle, folder: Path, rounding: Rounding, kept: list[str]) -> None:
    model, path = load_graph(exact.graph_file("step")), folder / exact.manifest.graphs["step"].file
    chosen = [linear for linear in find_linears(model) if linear.name not in kept]
    rounding(model, chosen)
    save_graph(model, path)
    check_rewritten(path, [linear.name for linear in chosen])


def _write_conditioner(exact: Bundle, folder: Path) -> int:
    """-> how many of its linears are int8 at rest now; a network of the user's may have none of the known names."""
    model, path = load_graph(exact.graph_file("conditioner")), folder / exact.manifest.graphs["conditioner"].file
    chosen = [linear for linear in find_linears(model) if linear.name.startswith(CONDITIONER_PREFIXES)]
    int8_at_rest(model, chosen)
    save_graph(model, path)
    check_rewritten(path, [linear.name for linear in chosen])
    return len(chosen)
