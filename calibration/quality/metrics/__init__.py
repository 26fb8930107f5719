"""METRICS: what `compare` measures. A metric is one file of this folder and one line here."""

from __future__ import annotations

from ..metric import Metric
from . import decoding, disk, drift, features, pixels, speed

METRICS: dict[str, Metric] = {  # in the order of the table, the report and quality.json
    "drift": drift.METRIC,
    "pixels": pixels.METRIC,
    "decoding": decoding.METRIC,
    "features": features.METRIC,
    "disk": disk.METRIC,
    "speed": speed.METRIC,
}
