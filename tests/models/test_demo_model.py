"""The demo model: small enough to ship, and its samples are what they were asked to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ditedge.calibration import accuracy, image_features
from ditedge.export import ExportOptions, bundle_from_checkpoint
from ditedge.runtime import generate, open_bundle

MODELS = Path(__file__).resolve().parents[2] / "models"
CLASSIFIER = MODELS / "fashion_classifier.onnx"
NAMES = tuple((MODELS / "fashion-dit.classes.txt").read_text().splitlines())


def test_sizes() -> None:
    assert (MODELS / "fashion-dit.safetensors").stat().st_size <= 12e6
    assert CLASSIFIER.stat().st_size < 1.5e6


def test_samples_are_what_they_were_asked_to_be(tmp_path: Path) -> None:
    """100 samples; bench/quality.py measures 500 and more. 85 of 100 is 2 standard deviations below 90 %."""
    bundle_from_checkpoint(MODELS / "fashion-dit.safetensors", tmp_path / "b", ExportOptions(heads=3, labels=NAMES))
    bundle = open_bundle(tmp_path / "b")
    labels = [i % 10 for i in range(100)]
    images = generate(bundle, labels, seeds=range(100), program=bundle.program(steps=25), batch=25)
    logits, _ = image_features(CLASSIFIER, images)
    assert accuracy(logits, np.array(labels)) >= 0.85
