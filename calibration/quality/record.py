"""`quality.json`: what a comparison measured. The models below are the format; docs/quality-reports.md explains them.

Also the gate: the limits a comparison must keep, and the sentence for each that it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...runtime.errors import DitedgeError, RequestError
from ...runtime.json_files import read_json, validated

MAX_QUALITY_BYTES = 64 << 20

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Contender(_Strict):
    """One of the two bundles, and how it was run."""

    name: str
    manifest_sha256: str
    provider: str
    threads: Count  # 0: the library chooses
    bytes: Count  # of every file listed in the manifest
    graph_bytes: Count  # without sampler tables and golden trajectories


class Settings(_Strict):
    """What both sampled: image i has seed `seed + i` and class i modulo the number of classes."""

    count: Count
    seed: Count
    batch: Count
    program: str
    steps: Count
    guidance: Finite


class StepError(_Strict):
    """Relative error of B's latents after one step. relative: over all images together; worst: of the worst image."""

    timestep: Finite
    relative: Positive | None  # None: no image of B is finite
    worst: Positive | None


class Drift(_Strict):
    """Final latents of B against A's: ||b - a|| / ||a||. Images of B that are not finite are counted, not averaged."""

    relative: Positive | None  # all images together; None: no image of B is finite
    median: Positive | None  # over images
    worst: Positive | None
    psnr: Finite | None  # dB, the peak is the range of A's latents; None: equal, or nothing finite
    broken: Count  # images of B with numbers that are not finite


class Pixels(_Strict):
    """Decoded pictures, 0 to 255. A PSNR of None means equal pictures."""

    psnr: Finite | None  # dB, all images together
    median_psnr: Finite | None
    worst_psnr: Finite | None
    mean_difference: Positive  # mean |a - b|


class Scores(_Strict):
    """One set of pictures. Distances are to the reference pictures, None without any."""

    accuracy: Positive  # share of pictures that the classifier takes for their class
    frechet_distance: Finite | None
    kernel_distance: Finite | None
    kernel_distance_error: Positive | None  # standard error


class Features(_Strict):
    """Pictures seen through a feature extractor. "Frechet distance" is the FID only where the features are Inception's.

    a_other_seeds is A once more with the next `count` seeds: what differs between it and `a` is chance.
    """

    model: str
    model_sha256: str
    dimensions: Count
    reference: str | None
    reference_count: Count
    a: Scores
    b: Scores
    a_other_seeds: Scores
    frechet_between: Finite  # A and B, same seeds
    kernel_between: Positive  # of the sets, `metrics.kernel_distance_of_sets`
    frechet_between_seeds: Finite  # A and A with other seeds
    kernel_between_seeds: Positive


class Timing(_Strict):
    """Milliseconds of one step of the network, and the process's peak memory (conditioner and step loaded)."""

    median_ms: Positive
    min_ms: Positive
    max_ms: Positive
    peak_bytes: Count


class Speed(_Strict):
    """Steps of A and B in turns, each in a process of its own. Ratios are A's time / B's: above 1, B is faster."""

    a: Timing
    b: Timing
    ratio: Positive  # median over rounds
    ratio_min: Positive
    ratio_max: Positive
    rounds: Count
    batch: Count
    evaluations: Count  # of the network in that step: twice the batch with guidance


class GateResult(_Strict):
    """One limit. measured is None when there was nothing finite to measure, which fails."""

    name: str
    limit: Finite
    measured: Finite | None
    passed: bool
    sentence: str


class GateFailed(DitedgeError):
    """A bundle that does not keep its limits."""

    def __init__(self, failed: list[GateResult]) -> None:
        super().__init__("; ".join(result.sentence for result in failed))
        self.failed = failed


class Quality(_Strict):
    """Everything a comparison of bundle B against bundle A measured."""

    format: Literal["ditedge-quality"] = "ditedge-quality"
    version: Literal[1] = 1
    made_by: str
    a: Contender
    b: Contender
    settings: Settings
    steps: list[StepError]
    drift: Drift
    drift_between_seeds: Positive  # A with other seeds against A, same classes: how far unrelated pictures are apart
    drift_between_seeds_count: Count
    pixels: Pixels | None  # None: a bundle without decoder
    features: Features | None  # None: no feature extractor was given
    speed: Speed | None  # None: not measured
    gates: list[GateResult] = []


def read_quality(path: Path) -> Quality:
    """quality.json -> Quality. Raises RequestError naming the file and the field."""
    data = read_json(path, MAX_QUALITY_BYTES, RequestError)
    return validated(Quality, data, f"{path}: not a quality report of this ditedge", RequestError)


@dataclass(frozen=True)
class Gate:
    """Limits on what B may lose against A; None is no limit."""

    max_drift: float | None = None  # relative drift of the final latents, all images together
    min_psnr: float | None = None  # dB, of all pictures together
    max_accuracy_loss: float | None = None  # points: 100 * (A's accuracy - B's)
    max_frechet_increase: float | None = None  # percent of A's Frechet distance to the reference
    min_speedup: float | None = None  # B's steps per second / A's
    max_size: float | None = None  # percent of A's graphs on disk


def check_gate_can_be_measured(gate: Gate, *, features: bool, reference: bool, decoder: bool, speed: bool) -> None:
    """Raises RequestError, before anything is sampled, for a limit on something that will not be measured."""
    if gate.max_accuracy_loss is not None and not features:
        raise RequestError("--max-accuracy-loss needs a classifier: give --features MODEL.onnx")
    if gate.max_frechet_increase is not None and not (features and reference):
        raise RequestError("--max-frechet-increase needs --features MODEL.onnx and --reference PICTURES")
    if gate.min_psnr is not None and not decoder:
        raise RequestError("--min-psnr needs pictures, and a bundle has no decoder: limit --max-drift instead")
    if gate.min_speedup is not None and not speed:
        raise RequestError("--min-speedup needs the speed measured: give --speed-rounds above 0")


def check_gate(quality: Quality, gate: Gate) -> list[GateResult]:
    """One result per limit that is set; an image of B that is not finite fails every gate, and one with no limits, too.

    Raises RequestError for a limit on something that was not measured.
    """
    check_gate_can_be_measured(
        gate,
        features=quality.features is not None,
        reference=quality.features is not None and quality.features.reference is not None,
        decoder=quality.pixels is not None,
        speed=quality.speed is not None,
    )
    results = [_result("finite images", 0, quality.drift.broken, "number of images that are not finite", "")]
    if gate.max_drift is not None:
        results.append(_result("drift", gate.max_drift, quality.drift.relative, "relative drift of the latents", ""))
    if gate.min_psnr is not None and quality.pixels is not None:
        measured = quality.pixels.psnr
        if measured is None:  # equal pictures
            text = f"PSNR of the pictures is infinite, at least {gate.min_psnr:g} dB is asked"
            results.append(GateResult(name="psnr", limit=gate.min_psnr, measured=None, passed=True, sentence=text))
        else:
            results.append(_result("psnr", gate.min_psnr, measured, "PSNR of the pictures", " dB", least=True))
    if quality.features is not None:
        a, b = quality.features.a, quality.features.b
        if gate.max_accuracy_loss is not None:
            loss = 100 * (a.accuracy - b.accuracy)
            results.append(_result("accuracy loss", gate.max_accuracy_loss, loss, "loss of accuracy", " points"))
        if gate.max_frechet_increase is not None and a.frechet_distance is not None and b.frechet_distance is not None:
            increase = _percent_more(a.frechet_distance, b.frechet_distance)
            text = "increase of the Frechet distance"
            results.append(_result("Frechet increase", gate.max_frechet_increase, increase, text, " %"))
    if gate.min_speedup is not None and quality.speed is not None:
        results.append(_result("speed", gate.min_speedup, quality.speed.ratio, "speed of B over A", "x", least=True))
    if gate.max_size is not None:
        size = 100 * quality.b.graph_bytes / quality.a.graph_bytes
        results.append(_result("size", gate.max_size, size, "size of B's graphs", " % of A's"))
    return results


def _percent_more(a: float, b: float) -> float | None:
    """100 (b / a - 1); None when a is no distance at all (0, or below by rounding) and b is more."""
    if a > 0:
        return 100 * (b / a - 1)
    return 0.0 if b <= a else None


FLAGS = {
    "drift": " (--max-drift)",
    "psnr": " (--min-psnr)",
    "accuracy loss": " (--max-accuracy-loss)",
    "Frechet increase": " (--max-frechet-increase)",
    "speed": " (--min-speedup)",
    "size": " (--max-size)",
}


def _result(
    name: str, limit: float, measured: float | None, what: str, unit: str, *, least: bool = False
) -> GateResult:
    passed = measured is not None and (measured >= limit if least else measured <= limit)
    value = "not finite" if measured is None else f"{measured:.4g}{unit}"
    sentence = (
        f"{what} is {value}, {'at least' if least else 'at most'} {limit:g}{unit} is allowed{FLAGS.get(name, '')}"
    )
    return GateResult(name=name, limit=limit, measured=measured, passed=passed, sentence=sentence)
