"""`quality.json`: what a comparison measured. docs/quality-reports.md explains it; most fields are the metrics' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import create_model

from ...runtime.errors import RequestError
from ...runtime.json_files import read_json, validated
from .metric import Count, Finite, Strict
from .metrics import METRICS

MAX_QUALITY_BYTES = 64 << 20


class Contender(Strict):
    """One of the two bundles, and how it was run."""

    name: str
    manifest_sha256: str
    provider: str
    threads: Count  # 0: the library chooses
    bytes: Count  # of every file listed in the manifest
    graph_bytes: Count  # without sampler tables and golden trajectories


class Settings(Strict):
    """What both sampled: image i has seed `seed + i` and class, or prompt, i modulo their number."""

    count: Count
    seed: Count
    batch: Count
    program: str
    steps: Count
    guidance: Finite
    prompts: list[str] = []  # by their texts, in order; empty: classes
    sample_set: str | None = None  # of A's pictures, so that latents were compared in the first batch alone


class GateResult(Strict):
    """One limit. measured is None when there was nothing finite to measure, which fails."""

    name: str
    limit: Finite
    measured: Finite | None
    passed: bool
    sentence: str


class _Compared(Strict):
    format: Literal["ditedge-quality"] = "ditedge-quality"
    version: Literal[1] = 1
    made_by: str
    a: Contender
    b: Contender
    settings: Settings


MEASURED: dict[str, Any] = {name: (kind, ...) for metric in METRICS.values() for name, kind in metric.fields.items()}
_Measured: Any = create_model("_Measured", __base__=_Compared, **MEASURED)


class Quality(_Measured):
    """Everything a comparison of bundle B against bundle A measured: the fields of METRICS, and the gate's verdicts."""

    gates: list[GateResult] = []


def read_quality(path: Path) -> Quality:
    """quality.json -> Quality. Raises RequestError naming the file and the field."""
    data = read_json(path, MAX_QUALITY_BYTES, RequestError)
    return validated(Quality, data, f"{path}: not a quality report of this ditedge", RequestError)
