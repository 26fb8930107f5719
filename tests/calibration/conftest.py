"""A smoothing needs statistics, and they take seconds: one small set per golden model, collected once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from ditedge.calibration.pool import pool_of
from ditedge.calibration.statistics.collect import CalibrationSet, Statistics, collect_statistics
from ditedge.runtime import open_bundle

SMALL_SET = CalibrationSet(samples=4, timesteps=4, groups=2, batch=2)


@pytest.fixture(scope="session")
def collected(golden_bundle, tmp_path_factory: pytest.TempPathFactory):
    """collected(case) -> (float bundle folder, file of its statistics, the statistics), of ddim-10."""
    folder, done = tmp_path_factory.mktemp("statistics"), {}

    def collect(case: str = "gray1_cfg") -> tuple[Path, Path, Statistics]:
        if case not in done:
            bundle = open_bundle(golden_bundle(case))
            cache = folder / f"{case}.safetensors"
            statistics = collect_statistics(bundle, pool_of(bundle), bundle.program("ddim-10"), SMALL_SET, cache)
            done[case] = (golden_bundle(case), cache, statistics)
        return done[case]

    return collect
