"""The demo model: small enough to ship, and its samples are what they were asked to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ditedge.calibration import accuracy, image_features
from ditedge.runtime import generate, open_bundle
from ditedge.runtime.samplers.program import read_program
from tests.conftest import MODELS

CLASSIFIER = MODELS / "fashion_classifier.onnx"


def test_sizes() -> None:
    assert (MODELS / "fashion-dit.safetensors").stat().st_size <= 12e6
    assert CLASSIFIER.stat().st_size < 1.5e6


@pytest.mark.parametrize(
    ("program", "count", "least"), [("tuned-8", 30, 0.8), pytest.param(None, 100, 0.85, marks=pytest.mark.slow)]
)
def test_samples_are_what_they_were_asked_to_be(
    demo_bundle: Path, program: str | None, count: int, least: float
) -> None:
    """In the 8 passes of the program that is shipped beside it, and in 25 steps. bench/quality.py measures 500 and more.

    `least` is 2 standard deviations below 90 %.
    """
    bundle = open_bundle(demo_bundle)
    labels = [i % 10 for i in range(count)]
    table = read_program(MODELS / "fashion-programs" / f"{program}.json") if program else bundle.program(steps=25)
    images = generate(bundle, labels, seeds=range(count), program=table, batch=30)
    logits, _ = image_features(CLASSIFIER, images)
    assert accuracy(logits, np.array(labels)) >= least
