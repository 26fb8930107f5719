"""`tune.json`: what a search found, what it was measured with, and how sure that is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ...runtime.errors import RequestError
from ...runtime.json_files import read_json, validated
from ..quality.metric import Count, Finite, Positive, Strict

MAX_BYTES = 64 << 20


class Figures(Strict):
    """A program's pictures against the reference, from seeds that the search never saw.

    distance: Frechet. noise: its standard error, what another set of as many seeds would move it by.
    """

    images: Count
    seed: Count
    distance: Finite
    noise: Positive
    kernel: Finite
    accuracy: Positive | None


class Found(Strict):
    """A program. seconds: of one image alone on this machine, all included, measured. on_front: of all engines'."""

    name: str
    engine: str
    file: str | None  # in the search's folder; None: the default program, which the bundle has
    passes: Count
    steps: Count
    guided: Count
    seconds: Positive
    figures: Figures
    shape: dict[str, Any]
    on_front: bool = False
    written: bool = False  # a ready program of its bundle


class Judged(Strict):
    """By what pictures were judged. features None: ours, of an untrained network; the reference is the model then."""

    features: str | None
    features_sha256: str | None
    dimensions: Count
    reference: str
    reference_count: Count


class Tuned(Strict):
    """The whole search."""

    format: Literal["ditedge-tune"] = "ditedge-tune"
    version: Literal[1] = 1
    made_by: str
    engines: list[str]
    engine_sha256: list[str]  # of their graphs
    guidance: Finite  # of the bundle, which the programs' factors are parts of
    budget: str | None
    min_quality: Finite | None
    judged: Judged
    rungs: list[Count]
    seed: Count
    trials: Count
    pruned: Count  # after the first rung
    seconds: Positive  # of the searching, all runs together
    machine: str
    costs: list[dict[str, float]]  # of each engine: seconds of a step with one and with two evaluations, and the rest
    baseline: Found | None  # the first engine's default program
    programs: list[Found]
    measured: list[Found]  # on the last rung: those and the others
    trial_points: list[
        Annotated[tuple[Finite, Finite], Field(strict=False)]
    ]  # (seconds, distance on the search's last rung) of every trial there


def read_tuned(path: Path) -> Tuned:
    """tune.json -> Tuned. Raises RequestError naming the file and the field."""
    return validated(Tuned, read_json(path, MAX_BYTES, RequestError), f"{path}: not what `tune` writes", RequestError)
