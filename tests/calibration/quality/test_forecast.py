"""What a quality report will cost is announced before it: the evaluations that are counted are those that are made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from ditedge.calibration import CompareRequest, compare_bundles
from ditedge.calibration.quality.forecast import cost_of_report, golden_evaluations, report_evaluations
from ditedge.cli import main
from ditedge.runtime import Session, open_bundle
from ditedge.runtime.loop.verify import replay


@pytest.mark.parametrize("case", ["gray1_cfg", "pixel3_no_null_class"])
def test_evaluations_are_those_that_are_made(golden_bundle, made: list[int], case: str) -> None:
    bundle = open_bundle(golden_bundle(case))
    request = CompareRequest(count=5, batch=2, steps=3, speed_rounds=0)
    made.clear()  # an export has checked its graphs
    compare_bundles(bundle, bundle, request)
    assert sum(made) == report_evaluations(bundle, request) > 0
    made.clear()
    with Session(bundle) as session:
        for golden in bundle.manifest.golden:
            replay(session, golden)
    assert sum(made) == golden_evaluations(bundle) > 0


def test_the_cost_grows_with_what_is_asked(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    request = CompareRequest(count=32, steps=20, speed_rounds=0)  # 80 images x 20 steps x 2, after 60 evaluations
    assert cost_of_report(bundle, request, 3.0).endswith("32 image(s) of 20 steps with both networks, about 2 min 40 s")


def test_quantize_announces_it(golden_bundle, tmp_path: Path) -> None:
    command = ["quantize", "--engine", str(golden_bundle("gray1_cfg")), "--out", str(tmp_path / "b")]
    result = CliRunner().invoke(main, [*command, "--count", "3", "--steps", "2"])
    said = r"quality report: 3 image\(s\) of 2 steps with both networks, about \d+ s \(--count says how many\)"
    assert result.exit_code == 0 and re.search(said, result.stderr), result.output
