"""METRICS: a metric is one file and one line; its limits, lines, cards and fields of quality.json follow from it."""

from __future__ import annotations

from dataclasses import fields

from click.testing import CliRunner

from ditedge.calibration import CompareRequest, Gate, Quality, compare_bundles
from ditedge.calibration.quality.gate import LIMITS
from ditedge.calibration.quality.metrics import METRICS
from ditedge.calibration.quality.record import MEASURED
from ditedge.calibration.quality.report import report_html, summary_lines
from ditedge.cli import main
from tests.conftest import ROOT


def test_every_limit_is_an_option_of_both_commands_and_in_the_documentation() -> None:
    assert [field.name for field in fields(Gate)] == [limit.option for limit in LIMITS.values()]
    page = (ROOT / "docs" / "quality-reports.md").read_text()
    for command in ("compare", "quantize"):
        text = " ".join(CliRunner().invoke(main, [command, "--help"]).output.split())
        for limit in LIMITS.values():
            assert f"{limit.flag} FLOAT Gate: {limit.help}" in text
            assert f"`{limit.flag} " in page


def test_every_metric_is_in_the_file_the_table_and_the_page(golden_bundle) -> None:
    assert MEASURED.keys() <= Quality.model_fields.keys()
    assert len(MEASURED) == sum(len(metric.fields) for metric in METRICS.values())
    source = golden_bundle("gray1_cfg")
    comparison = compare_bundles(source, source, CompareRequest(count=2, steps=3, speed_rounds=0))
    quality = comparison.quality
    assert quality.features is None and quality.speed is None and quality.pixels.psnr is None
    names = [line[0] for line in summary_lines(quality)]
    assert names == [line[0] for metric in METRICS.values() for line in metric.lines(quality)]
    page = report_html(comparison)
    for metric in METRICS.values():
        for name, value, _ in metric.cards(quality):
            assert name in page and value in page
    unlimited = [limit for limit in LIMITS.values() if limit.option in ("max_drift", "max_size", "min_psnr")]
    assert [limit.measured(quality) for limit in unlimited] == [0.0, float("inf"), 100.0]
