"""Both sets of pictures through a feature extractor: right classes, and distances between sets."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np

from ....runtime.files import sha256_of_file
from ..distances import accuracy, frechet_distance, kernel_distance, kernel_distance_of_sets
from ..features import FeatureExtractor
from ..metric import Batch, Card, Comparing, Count, Finite, Limit, Line, Metric, Positive, Quality, Strict, number
from ..real_pictures import reference_features


class Scores(Strict):
    """One set of pictures. Distances are to the reference pictures, None without any."""

    accuracy: Positive | None  # share of pictures that the classifier takes for their class; None: they have none
    frechet_distance: Finite | None
    kernel_distance: Finite | None
    kernel_distance_error: Positive | None  # standard error


class Features(Strict):
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
    kernel_between: Positive  # of the sets, `distances.kernel_distance_of_sets`
    frechet_between_seeds: Finite  # A and A with other seeds
    kernel_between_seeds: Positive


class _Set:
    """What the extractor says of one set of pictures."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        self._extractor = extractor
        self._logits: list[np.ndarray] = []
        self._features: list[np.ndarray] = []

    def add(self, pictures: np.ndarray | None) -> None:
        assert pictures is not None  # `comparable.check` refuses an extractor without pictures
        logits, features = self._extractor(pictures)
        self._logits.append(logits)
        self._features.append(features)

    @property
    def features(self) -> np.ndarray:
        return np.concatenate(self._features)

    def scores(self, labels: np.ndarray | None, reference: np.ndarray | None) -> Scores:
        share = None if labels is None else accuracy(np.concatenate(self._logits), labels)
        if reference is None:
            return Scores(accuracy=share, frechet_distance=None, kernel_distance=None, kernel_distance_error=None)
        kernel, error = kernel_distance(self.features, reference)
        return Scores(
            accuracy=share,
            frechet_distance=frechet_distance(self.features, reference),
            kernel_distance=kernel,
            kernel_distance_error=error,
        )


class _Measure:
    """reference: features [n, F] of the real pictures, None without any."""

    def __init__(self, comparing: Comparing, extractor: FeatureExtractor, reference: np.ndarray | None) -> None:
        self._comparing, self._extractor, self._reference = comparing, extractor, reference
        self._a, self._b, self._other = (_Set(extractor) for _ in range(3))

    def add(self, batch: Batch) -> None:
        self._a.add(batch.pictures_a)
        self._b.add(batch.pictures_b)
        self._other.add(batch.pictures_other)

    def fields(self) -> dict[str, Any]:
        self._comparing.report("distances", 0, 1)
        classes, reference = self._comparing.a.manifest.text is None, self._reference
        labels = np.array(self._comparing.subjects) if classes else None
        a, b, other, path = self._a.features, self._b.features, self._other.features, self._comparing.request.reference
        found = Features(
            model=self._extractor.model.name,
            model_sha256=sha256_of_file(self._extractor.model),
            dimensions=a.shape[1],
            reference=None if path is None else path.name,
            reference_count=0 if reference is None else len(reference),
            a=self._a.scores(labels, reference),
            b=self._b.scores(labels, reference),
            a_other_seeds=self._other.scores(labels, reference),
            frechet_between=frechet_distance(a, b),
            kernel_between=kernel_distance_of_sets(a, b),
            frechet_between_seeds=frechet_distance(a, other),
            kernel_between_seeds=kernel_distance_of_sets(a, other),
        )
        self._comparing.report("distances", 1, 1)
        return {"features": found}


def _start(comparing: Comparing) -> _Measure | None:
    request = comparing.request
    if request.features is None:
        return None
    extractor = FeatureExtractor(request.features, request.options_a)
    shape = comparing.a.manifest.picture_size("decoder")
    extractor.check_classes(shape, comparing.a.manifest.model.num_classes)
    if request.reference is None:
        return _Measure(comparing, extractor, None)
    return _Measure(comparing, extractor, reference_features(request.reference, extractor, shape, comparing.report))


def _lines(quality: Quality) -> Iterator[Line]:
    f = quality.features
    if f is None:
        return
    a, b, other = f.a, f.b, f.a_other_seeds
    if a.accuracy is not None:
        yield "accuracy", _share(a), _share(b), _share(other)
    if f.reference is not None:
        distances = (number(one.frechet_distance) for one in (a, b, other))
        yield "Frechet to reference", *distances  # type: ignore[misc]
        yield "kernel to reference", *(_kernel(one.kernel_distance) for one in (a, b, other))  # type: ignore[misc]
    yield "Frechet to A", "", number(f.frechet_between), number(f.frechet_between_seeds)
    yield "kernel to A", "", _kernel(f.kernel_between), _kernel(f.kernel_between_seeds)


def _share(scores: Scores) -> str:
    return "" if scores.accuracy is None else f"{100 * scores.accuracy:.2f} %"


def _kernel(value: float | None) -> str:
    return "" if value is None else f"{1000 * value:.2f}"


def _cards(quality: Quality) -> Iterator[Card]:
    f = quality.features
    if f is None:
        return
    if f.a.accuracy is not None:
        change = 100 * (f.b.accuracy - f.a.accuracy)
        noise = 100 * (f.a_other_seeds.accuracy - f.a.accuracy)
        yield "Accuracy", f"{change:+.2f} pt", f"A with other seeds: {noise:+.2f} pt"
    if f.a.frechet_distance and f.b.frechet_distance is not None and f.a_other_seeds.frechet_distance is not None:
        change = 100 * (f.b.frechet_distance / f.a.frechet_distance - 1)
        noise = 100 * (f.a_other_seeds.frechet_distance / f.a.frechet_distance - 1)
        yield "Frechet", f"{change:+.1f} %", f"A with other seeds: {noise:+.1f} %"


def _notes(quality: Quality) -> Iterator[str]:
    f = quality.features
    if f is None:
        return
    reference = f", reference {escape(f.reference)} ({f.reference_count} pictures)" if f.reference else ""
    yield (
        f"Distances are in the {f.dimensions} features of {escape(f.model)}{reference}; kernel distances are "
        "times 1000. They depend on the number of images, so compare only figures of equal counts."
    )


def percent_more(a: float, b: float) -> float | None:
    """100 (b / a - 1); None when a is no distance at all (0, or below by rounding) and b is more."""
    if a > 0:
        return 100 * (b / a - 1)
    return 0.0 if b <= a else None


METRIC = Metric(
    fields={"features": Features | None},  # None: no feature extractor was given
    start=_start,
    lines=_lines,
    cards=_cards,
    notes=_notes,
    limits=(
        Limit(
            "max_accuracy_loss", "accuracy loss", "loss of accuracy", " points",
            "loss of accuracy, points; needs --features.",
            lambda quality: 100 * (quality.features.a.accuracy - quality.features.b.accuracy),
            lambda measured: measured.features and measured.classes,
            "a classifier and classes: give --features MODEL.onnx, with models of classes",
        ),
        Limit(
            "max_frechet_increase", "Frechet increase", "increase of the Frechet distance", " %",
            "increase of the Frechet distance, percent; needs --features, --reference.",
            lambda quality: percent_more(quality.features.a.frechet_distance, quality.features.b.frechet_distance),
            lambda measured: measured.features and measured.reference,
            "--features MODEL.onnx and --reference PICTURES",
        ),
    ),
)  # fmt: skip
