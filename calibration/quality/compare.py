"""`compare`: the same seeds and classes through two bundles, and what differs. Needs onnxruntime, no torch.

A is the reference, B what is judged: a quantised bundle, another export, or the same bundle on another provider
(`options_b`). Batches are streamed: memory holds one batch's trajectory [N, batch, C, H, W] and every image's features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ditedge import __version__

from ...runtime.bundle.open import Bundle, open_bundle
from ...runtime.errors import RequestError
from ...runtime.files import sha256_of_file
from ...runtime.loop.decoded import psnr_of_error
from ...runtime.loop.engine import EngineOptions
from ...runtime.loop.loop import StepEvent
from ...runtime.loop.noise import SeededNoise
from ...runtime.loop.session import Session
from ...runtime.samplers.process import check_process
from ...runtime.samplers.program import Program
from .features import FeatureExtractor
from .metrics import accuracy, frechet_distance, kernel_distance, kernel_distance_of_sets
from .real_pictures import reference_features
from .record import (
    Contender,
    Drift,
    Features,
    Gate,
    GateResult,
    Pixels,
    Quality,
    Scores,
    Settings,
    Speed,
    StepError,
    Timing,
    check_gate,
)
from .stopwatch import Laps, bundle_contender, interleave

OnProgress = Callable[[str, int, int], None]  # what is being done, how much of it is done, of how much


@dataclass(frozen=True)
class CompareRequest:
    """How to compare; None means A's default. Image i has seed `seed + i` and class i modulo the number of classes."""

    count: int = 64
    batch: int = 16  # images at a time: bounds memory
    seed: int = 0
    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    features: Path | None = None  # .onnx: image -> logits, features
    reference: Path | None = None  # .npz or a folder of pictures, see `reference`
    pictures: int = 8  # of the report
    speed_rounds: int = 15  # 0: the speed is not measured
    speed_batch: int = 1
    options_a: EngineOptions = field(default_factory=EngineOptions)
    options_b: EngineOptions = field(default_factory=EngineOptions)


@dataclass(frozen=True)
class Comparison:
    """What was measured, and the first pictures of both, uint8 [n, h, w, 1 or 3]; none without decoders."""

    quality: Quality
    labels: list[str]  # of the pictures
    images_a: np.ndarray | None
    images_b: np.ndarray | None

    def with_gate(self, gate: Gate) -> tuple[Comparison, list[GateResult]]:
        """The comparison with the gate's verdicts in its report, and those limits that B does not keep."""
        results = check_gate(self.quality, gate)
        quality = self.quality.model_copy(update={"gates": results})
        failed = [result for result in results if not result.passed]
        return Comparison(quality, self.labels, self.images_a, self.images_b), failed


def compare_bundles(
    a: Path | Bundle,
    b: Path | Bundle,
    request: CompareRequest | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Comparison:
    """Samples the same images from both and measures what B costs and saves.

    The program is A's (its default, or made from sampler and steps), and B runs the same table. Chance is measured
    beside it: A again with the next `count` seeds, or with a batch of them when there are no features.
    Raises RequestError (bundles that cannot be compared, files that do not fit), BundleError, EngineError.
    """
    request = request or CompareRequest()
    a, b = (bundle if isinstance(bundle, Bundle) else open_bundle(bundle) for bundle in (a, b))
    _check(a, b, request)
    program = a.program(sampler=request.sampler, steps=request.steps)
    check_process(program.name, program.process, b.process, f"{a.folder} and {b.folder} cannot be compared")
    guidance = a.manifest.defaults.guidance if request.guidance is None else request.guidance
    extractor = FeatureExtractor(request.features, request.options_a) if request.features else None
    if extractor is not None:
        _check_extractor(extractor, a)
    reference = None
    if extractor is not None and request.reference is not None:
        reference = reference_features(
            request.reference,
            extractor,
            _image_shape(a),
            lambda done, total: on_progress("features of the reference", done, total),
        )
    drift, seen_a, seen_b, seen_other, between = _sample(a, b, request, program, guidance, extractor, on_progress)
    features = None
    if extractor is not None:
        on_progress("distances", 0, 1)
        features = _features(request, extractor, a, (seen_a, seen_b, seen_other), reference)
        on_progress("distances", 1, 1)
    speed = _speed(a, b, request, guidance, on_progress) if request.speed_rounds else None
    quality = Quality(
        made_by=f"ditedge {__version__}",
        a=_contender(a, request.options_a),
        b=_contender(b, request.options_b),
        settings=Settings(
            count=request.count,
            seed=request.seed,
            batch=request.batch,
            program=program.name,
            steps=program.steps,
            guidance=guidance,
        ),
        steps=drift.steps(program),
        drift=drift.final(),
        drift_between_seeds=between.final().relative or 0.0,
        drift_between_seeds_count=between.count,
        pixels=drift.pixels(),
        features=features,
        speed=speed,
    )
    labels = [a.label_name(label) for label in _labels(a, 0, min(request.pictures, request.count))]
    return Comparison(quality, labels, seen_a.pictures, seen_b.pictures)


class DriftSums:
    """Errors of B's latents and pictures against A's, summed batch by batch in float64; no image is kept."""

    def __init__(self, steps: int) -> None:
        self._error, self._norm = np.zeros(steps), np.zeros(steps)  # squared, over finite images
        self._worst, self._finite = np.zeros(steps), np.zeros(steps, dtype=int)
        self._relative: list[np.ndarray] = []  # per image, of the final latents; NaN: not finite
        self._low, self._high, self._elements = np.inf, -np.inf, 0
        self._pixel_error: list[np.ndarray] = []  # mean squared per image
        self._pixel_difference = 0.0

    @property
    def count(self) -> int:
        return sum(map(len, self._relative))

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Trajectories a, b [N, B, C, H, W] float32. Raises RequestError when A itself is not finite."""
        a, b = (x.reshape(*x.shape[:2], -1) for x in (a, b))
        if not np.isfinite(a).all():
            raise RequestError("the reference bundle (--engine) makes numbers that are not finite: verify it first")
        for step in range(len(a)):
            x, y = a[step].astype(np.float64), b[step].astype(np.float64)
            finite = np.isfinite(y).all(axis=1)
            norm = np.sum(x**2, axis=1)
            error = np.sum((y[finite] - x[finite]) ** 2, axis=1)
            self._error[step] += error.sum()
            self._norm[step] += norm[finite].sum()
            self._finite[step] += finite.sum()
            relative = np.full(len(x), np.nan)
            relative[finite] = np.sqrt(error / norm[finite])
            if finite.any():
                self._worst[step] = max(self._worst[step], np.nanmax(relative))
        self._relative.append(relative)
        self._elements += int(finite.sum()) * x.shape[1]
        self._low, self._high = min(self._low, float(x.min())), max(self._high, float(x.max()))

    def add_pictures(self, a: np.ndarray, b: np.ndarray) -> None:
        """uint8 [B, h, w, c] each."""
        difference = a.astype(np.float64) - b.astype(np.float64)
        self._pixel_error.append(np.mean(difference**2, axis=(1, 2, 3)))
        self._pixel_difference += float(np.abs(difference).mean(axis=(1, 2, 3)).sum())

    def steps(self, program: Program) -> list[StepError]:
        return [
            StepError(
                timestep=float(timestep),
                relative=float(np.sqrt(error / norm)) if finite else None,
                worst=float(worst) if finite else None,
            )
            for timestep, error, norm, worst, finite in zip(
                program.timestep, self._error, self._norm, self._worst, self._finite, strict=True
            )
        ]

    def final(self) -> Drift:
        relative = np.concatenate(self._relative)
        finite = relative[np.isfinite(relative)]
        broken = len(relative) - len(finite)
        if not len(finite):
            return Drift(relative=None, median=None, worst=None, psnr=None, broken=broken)
        return Drift(
            relative=float(np.sqrt(self._error[-1] / self._norm[-1])),
            median=float(np.median(finite)),
            worst=float(finite.max()),
            psnr=_psnr(self._error[-1] / self._elements, self._high - self._low),
            broken=broken,
        )

    def pixels(self) -> Pixels | None:
        """None when no pictures were added."""
        if not self._pixel_error:
            return None
        errors = np.concatenate(self._pixel_error)
        return Pixels(
            psnr=_psnr(float(errors.mean())),
            median_psnr=_psnr(float(np.median(errors))),
            worst_psnr=_psnr(float(errors.max())),
            mean_difference=self._pixel_difference / len(errors),
        )


def _psnr(mean_squared_error: float, peak: float = 255.0) -> float | None:
    """dB; None, which JSON knows, for no error at all."""
    return psnr_of_error(mean_squared_error, peak) if mean_squared_error > 0 else None


class _Seen:
    """What is kept of one contender's images: features, right answers, and the first pictures."""

    def __init__(self, extractor: FeatureExtractor | None, keep: int) -> None:
        self._extractor, self._keep = extractor, keep
        self._features: list[np.ndarray] = []
        self._logits: list[np.ndarray] = []
        self._pictures: list[np.ndarray] = []

    def add(self, images: np.ndarray) -> None:
        if self._extractor is not None:
            logits, features = self._extractor(images)
            self._logits.append(logits)
            self._features.append(features)
        have = sum(map(len, self._pictures))
        if have < self._keep:
            self._pictures.append(images[: self._keep - have])

    @property
    def features(self) -> np.ndarray:
        return np.concatenate(self._features)

    @property
    def logits(self) -> np.ndarray:
        return np.concatenate(self._logits)

    @property
    def pictures(self) -> np.ndarray | None:
        return np.concatenate(self._pictures) if self._pictures else None


def _sample(
    a: Bundle,
    b: Bundle,
    request: CompareRequest,
    program: Program,
    guidance: float,
    extractor: FeatureExtractor | None,
    on_progress: OnProgress,
) -> tuple[DriftSums, _Seen, _Seen, _Seen, DriftSums]:
    """Batch by batch: A, then B, then A with other seeds. -> drift, what is kept of the three, drift between seeds."""
    drift, between = DriftSums(program.steps), DriftSums(1)
    seen_a, seen_b = _Seen(extractor, request.pictures), _Seen(extractor, request.pictures)
    seen_other = _Seen(extractor, 0)
    pictures = _has_pictures(a, b)
    batches = -(-request.count // request.batch)
    others = batches if extractor is not None else 1  # without features one batch says how far seeds are apart
    total = program.steps * (2 * batches + others)
    done = 0

    def advance(event: StepEvent) -> None:
        nonlocal done
        done += 1
        on_progress("sampling", done, total)

    with Session(a, request.options_a) as session_a, Session(b, request.options_b) as session_b:
        for index in range(batches):
            first = index * request.batch
            size = min(request.batch, request.count - first)
            labels = _labels(a, first, size)

            def run(session: Session, seed: int, labels: list[int] = labels) -> np.ndarray:
                return _trajectory(session, program, labels, guidance, seed, advance)

            path_a = run(session_a, request.seed + first)
            path_b = run(session_b, request.seed + first)
            drift.add(path_a, path_b)
            if pictures:
                images_a, images_b = session_a.images(path_a[-1]), session_b.images(path_b[-1])
                drift.add_pictures(images_a, images_b)
                seen_a.add(images_a)
                seen_b.add(images_b)
            del path_b
            if index < others:
                other = run(session_a, request.seed + request.count + first)
                between.add(path_a[-1:], other[-1:])
                if extractor is not None:
                    seen_other.add(session_a.images(other[-1]))
    return drift, seen_a, seen_b, seen_other, between


def _trajectory(
    session: Session,
    program: Program,
    labels: list[int],
    guidance: float,
    seed: int,
    advance: Callable[[StepEvent], None],
) -> np.ndarray:
    """Latents after each step, [N, B, C, H, W] float32."""
    shape = session.bundle.manifest.model.latent_shape
    path = np.empty((program.steps, len(labels), *shape), dtype=np.float32)

    def on_step(event: StepEvent) -> None:
        path[event.step - 1] = event.latents
        advance(event)

    noise = SeededNoise([seed + i for i in range(len(labels))], shape)
    session.latents(program, labels, guidance, noise, on_step=on_step)
    return path


def _features(
    request: CompareRequest,
    extractor: FeatureExtractor,
    bundle: Bundle,
    seen: tuple[_Seen, _Seen, _Seen],
    reference: np.ndarray | None,
) -> Features:
    labels = np.array(_labels(bundle, 0, request.count))

    def scores(one: _Seen) -> Scores:
        share = accuracy(one.logits, labels)
        if reference is None:
            return Scores(accuracy=share, frechet_distance=None, kernel_distance=None, kernel_distance_error=None)
        kernel, error = kernel_distance(one.features, reference)
        return Scores(
            accuracy=share,
            frechet_distance=frechet_distance(one.features, reference),
            kernel_distance=kernel,
            kernel_distance_error=error,
        )

    a, b, other = seen
    return Features(
        model=extractor.model.name,
        model_sha256=sha256_of_file(extractor.model),
        dimensions=a.features.shape[1],
        reference=None if request.reference is None else request.reference.name,
        reference_count=0 if reference is None else len(reference),
        a=scores(a),
        b=scores(b),
        a_other_seeds=scores(other),
        frechet_between=frechet_distance(a.features, b.features),
        kernel_between=kernel_distance_of_sets(a.features, b.features),
        frechet_between_seeds=frechet_distance(a.features, other.features),
        kernel_between_seeds=kernel_distance_of_sets(a.features, other.features),
    )


def _speed(a: Bundle, b: Bundle, request: CompareRequest, guidance: float, on_progress: OnProgress) -> Speed:
    commands = [
        bundle_contender(bundle.folder, options, request.speed_batch, guidance, bundle.sha256)
        for bundle, options in ((a, request.options_a), (b, request.options_b))
    ]
    laps = interleave(commands, request.speed_rounds, lambda done, total: on_progress("timing", done, total))
    ratios = laps[0].seconds / laps[1].seconds
    program = a.program()
    guided = guidance != 1 and bool(program.guided[program.steps // 2])  # the step that `bundle_step` runs
    return Speed(
        a=_timing(laps[0]),
        b=_timing(laps[1]),
        ratio=float(np.median(ratios)),
        ratio_min=float(ratios.min()),
        ratio_max=float(ratios.max()),
        rounds=request.speed_rounds,
        batch=request.speed_batch,
        evaluations=request.speed_batch * (2 if guided else 1),
    )


def _timing(laps: Laps) -> Timing:
    ms = 1000 * laps.seconds
    return Timing(
        median_ms=float(np.median(ms)), min_ms=float(ms.min()), max_ms=float(ms.max()), peak_bytes=laps.peak_bytes
    )


def _contender(bundle: Bundle, options: EngineOptions) -> Contender:
    files: dict[str, Any] = dict(bundle.manifest.files)
    tables = {*bundle.manifest.programs.values(), *(golden.file for golden in bundle.manifest.golden)}
    return Contender(
        name=bundle.folder.absolute().name,
        manifest_sha256=bundle.sha256,
        provider=options.provider,
        threads=options.threads,
        bytes=sum(info.bytes for info in files.values()),
        graph_bytes=sum(info.bytes for name, info in files.items() if name not in tables),
    )


def _labels(bundle: Bundle, first: int, count: int) -> list[int]:
    return [i % bundle.manifest.model.num_classes for i in range(first, first + count)]


def _has_pictures(*bundles: Bundle) -> bool:
    return all("decoder" in bundle.manifest.graphs for bundle in bundles)


def _image_shape(bundle: Bundle) -> tuple[int, int, int]:
    """[h, w, c] of the decoder's images."""
    height, width, channels = bundle.manifest.graphs["decoder"].outputs[0].shape[1:]
    return int(height), int(width), int(channels)


def _check_extractor(extractor: FeatureExtractor, bundle: Bundle) -> None:
    """Raises RequestError now, from one black image, and not after minutes of sampling."""
    logits, _ = extractor(np.zeros((1, *_image_shape(bundle)), dtype=np.uint8))
    classes = bundle.manifest.model.num_classes
    if logits.ndim != 2 or logits.shape[1] < classes:
        raise RequestError(f"{extractor.model}: has logits {list(logits.shape)}, the bundles have {classes} classes")


COMPARABLE: Sequence[tuple[str, str]] = (
    ("in_channels", "latent channels"),
    ("input_size", "latent size"),
    ("out_channels", "network output channels"),
    ("num_classes", "classes"),
    ("null_class", "null class"),
    ("prediction", "prediction"),
    ("guided_channels", "guided channels"),
)


def _check(a: Bundle, b: Bundle, request: CompareRequest) -> None:
    """Raises RequestError, in one sentence, for bundles that one program cannot drive, and for impossible requests."""
    for name, text in COMPARABLE:
        x, y = getattr(a.manifest.model, name), getattr(b.manifest.model, name)
        if x != y:
            raise RequestError(f"{a.folder} and {b.folder} cannot be compared: {text} {x} against {y}")
    least = 2 if request.features else 1  # a covariance needs two
    if request.count < least or request.batch < 1 or request.speed_rounds < 0 or request.speed_batch < 1:
        raise RequestError(
            f"count {request.count}, batch {request.batch}, speed batch {request.speed_batch}: "
            f"at least {least}, 1 and 1 are needed"
        )
    if not 0 <= request.seed <= 2**64 - 2 * request.count:
        raise RequestError(
            f"seed {request.seed}: the seeds of {request.count} images, and of as many others, end at 2**64"
        )
    if request.reference is not None and request.features is None:
        raise RequestError(f"reference {request.reference} needs a feature extractor: give features, too")
    if not _has_pictures(a, b):
        if request.features is not None:
            folder = b.folder if _has_pictures(a) else a.folder
            raise RequestError(f"{folder} has no decoder, so there are no pictures for {request.features}")
    elif _image_shape(a) != _image_shape(b):
        raise RequestError(
            f"{a.folder} and {b.folder} cannot be compared: pictures {list(_image_shape(a))} against "
            f"{list(_image_shape(b))}"
        )
