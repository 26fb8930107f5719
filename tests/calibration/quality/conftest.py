"""A bundle, a coarser one, a feature extractor, and a count of what is evaluated: what tests of quality share."""

from __future__ import annotations

from pathlib import Path

import pytest

from ditedge.runtime.loop.engine_ort import OrtEngine
from tests.calibration.quality.feature_models import feature_model
from tests.calibration.variants import rounded, variant


@pytest.fixture(scope="session")
def gray(golden_bundle) -> Path:
    return golden_bundle("gray1_cfg")


@pytest.fixture(scope="session")
def coarse(gray: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return variant(gray, tmp_path_factory.mktemp("coarse") / "coarse", rounded(15))


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_model(tmp_path_factory.mktemp("features") / "f.onnx", outputs=("logits", "features"))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Evaluations of the network, a number for each run of a step graph."""
    found: list[int] = []
    run = OrtEngine.run

    def counted(self: OrtEngine, inputs: dict, outputs: dict, cancel: object = None) -> None:
        found.append(len(inputs.get("condition", ())))
        run(self, inputs, outputs, cancel)

    monkeypatch.setattr(OrtEngine, "run", counted)
    return found
