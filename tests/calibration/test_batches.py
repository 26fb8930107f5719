"""An image of an integer bundle is the same alone and in any batch, to the bit: rounding would amplify a last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ditedge.calibration.options import QuantizeOptions
from ditedge.calibration.quantize import quantize_bundle
from ditedge.runtime import Bundle, Session, generate, open_bundle

SAMPLERS = ("ddim", "ddpm", "dpm++", "unipc", "heun", "euler")


def check_random_runs(bundle: Bundle, runs: int, most: int) -> None:
    """`runs` requests in odd batches; one image of each, asked for alone, must be the same numbers."""
    rng, classes = np.random.default_rng(11), bundle.manifest.model.num_classes
    with Session(bundle) as session:
        for _ in range(runs):
            count = int(rng.integers(2, most))
            labels = [int(label) for label in rng.integers(0, classes, count)]
            seeds = [int(seed) for seed in rng.integers(0, 2**63, count)]
            away_from = [int(other) if rng.random() < 0.5 else None for other in rng.integers(0, classes, count)]
            settings = {
                "program": bundle.program(sampler=str(rng.choice(SAMPLERS)), steps=int(rng.integers(2, 6))),
                "guidance": float(rng.choice([1.0, 1.5, 4.0])),
                "output": "latents",
                "session": session,
            }
            batch = int(rng.integers(1, count + 1))
            together = generate(bundle, labels, seeds, away_from=away_from, batch=batch, **settings)
            i = int(rng.integers(count))
            part = slice(i, i + 1)
            alone = generate(bundle, labels[part], seeds[part], away_from=away_from[part], batch=1, **settings)
            assert np.array_equal(alone[0], together[i]), f"image {i} of {count} in batches of {batch}: {settings}"


def test_a_tiny_model(golden_bundle, tmp_path: Path) -> None:
    quantize_bundle(golden_bundle("gray1_cfg"), tmp_path / "int8", QuantizeOptions())
    check_random_runs(open_bundle(tmp_path / "int8"), runs=25, most=9)


@pytest.mark.slow
def test_two_hundred_runs_of_the_demo_model(demo_bundle: Path, tmp_path: Path) -> None:
    quantize_bundle(demo_bundle, tmp_path / "int8", QuantizeOptions())
    check_random_runs(open_bundle(tmp_path / "int8"), runs=200, most=12)
