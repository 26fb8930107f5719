"""`bench`: rows of bundles on engines, what failed beside what ran, as JSON, as a table and as a page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ditedge.cli import main
from ditedge.runtime import open_bundle
from ditedge.runtime.bench import measure as measuring
from ditedge.runtime.bench.measure import bench
from ditedge.runtime.bench.page import bar_chart, page_of
from ditedge.runtime.bench.record import Record, measured, timing
from ditedge.runtime.bench.request import BenchRequest, BenchSettings
from ditedge.runtime.bench.table import HEADS, PART_HEADS, cells, figures, part_cells
from ditedge.runtime.bench.turns import Laps
from ditedge.runtime.errors import EngineError, RequestError
from tests.conftest import BUNDLES

QUICK = BenchSettings(threads=1, repeats=2, drift_steps=3)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A bundle, the same with other weights, one that is damaged, and a provider that this machine lacks."""
    folder = tmp_path_factory.mktemp("bench")
    broken = Path(shutil.copytree(BUNDLES / "gray1_cfg", folder / "<b>roken"))
    (broken / "step.onnx").write_bytes(b"nothing")
    request = BenchRequest((BUNDLES / "gray1_cfg", broken, BUNDLES / "gray1_cfg"), ("cpu", "coreml"), QUICK)
    return bench(request)


def test_one_that_fails_does_not_stop_the_others(record: Record) -> None:
    assert [row.status for row in record.rows] == ["ok", "failed", "failed", "failed", "ok", "failed"]
    assert "provider 'coreml' is not in this ONNX Runtime" in record.rows[1].reason
    assert "step.onnx" in record.rows[2].reason
    first, last = record.rows[0], record.rows[4]
    assert first.drift is None and last.drift == 0.0, "the same bundle computes the same"
    for row in (first, last):
        assert row.parts.keys() == {"conditioner", "step", "decoder"} and row.ratio is not None
        assert row.parts["step"].median_ms <= row.parts["step"].p95_ms and row.parts["step"].calls >= 4
        assert row.load_seconds > 0 and row.peak_megabytes > 10 and 0 < row.loop_share < 1
    info = open_bundle(BUNDLES / "gray1_cfg").manifest
    assert first.megabytes == (info.graph_bytes("conditioner") + info.graph_bytes("step")) / 1e6
    assert (record.batch, record.rounds, record.evaluations) == (1, 2, 2)


def test_a_bundle_is_opened_once_however_many_providers_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening hashes every file. One that cannot be opened is a row of each provider."""
    opened: list[Path] = []
    monkeypatch.setattr(measuring, "open_bundle", lambda path, **keys: opened.append(path) or open_bundle(path, **keys))
    monkeypatch.setattr(measuring, "measure", lambda contenders, *_: contenders)
    gray, none = BUNDLES / "gray1_cfg", tmp_path / "none"
    found = bench(BenchRequest((gray, none, gray), ("cpu", "coreml"), QUICK))
    assert sorted(opened) == sorted([gray, none])
    assert [(one.name, bool(one.failure)) for one in found] == [
        (f"{path.name} on {provider}", path is none) for path in (gray, none, gray) for provider in ("cpu", "coreml")
    ]


def test_the_document_is_its_schema(record: Record) -> None:
    text = record.model_dump_json()
    assert Record.model_validate_json(text) == record
    schema = Record.model_json_schema()
    assert {"machine", "rows", "batch", "what"} <= set(schema["required"])
    with pytest.raises(ValueError, match="status"):
        Record.model_validate_json(text.replace('"failed"', '"fine"'))


def test_the_page_is_alone_and_nothing_in_it_is_obeyed(record: Record) -> None:
    html = page_of(record)
    assert not re.search(r"(src|href)\s*=|@import|url\(|<script|https?:", html), "it loads something"
    assert "&lt;b&gt;roken" in html and "<b>roken" not in html
    for text in ("One step", "One image", "Part by part", "What did not work", "coreml", "<svg"):
        assert text in html
    assert html.count("<rect") >= 2 * 2, "a bar for each that ran, in both figures"


def test_a_table_has_a_cell_for_every_head(record: Record) -> None:
    assert all(len(cells(row)) == len(HEADS) and len(part_cells(row)) == len(PART_HEADS) for row in record.rows)
    assert [figures(value) for value in (0.01234, 1.234, 12.34, 1234.4)] == ["0.0123", "1.23", "12.3", "1234"]


def laps(step: list[float], decoder: float = 0.0) -> Laps:
    calls = {"step": [[seconds] for seconds in step], "conditioner": [[0.01]] * len(step)}
    calls |= {"decoder": [[decoder]] * len(step)} if decoder else {}
    return Laps(calls, 1_000_000, 0.5, {"step": 1.5}, {})


def test_figures_of_known_laps() -> None:
    """Ratios within rounds; an image is the conditioner, 10 steps and the decoder of a batch of 2, over 2."""
    first, other = laps([0.2, 0.4, 0.3]), laps([0.1, 0.1, 0.3], decoder=0.5)
    row = measured("x", other, first, 2, 10, drift=0.02, limit=0.01)
    assert (row.ratio.median, row.ratio.least, row.ratio.most) == pytest.approx((2.0, 1.0, 4.0))
    assert row.image.median_ms == pytest.approx(1000 * (0.01 + 10 * 0.1 + 0.5) / 2)
    assert row.images_per_second == pytest.approx(2 / 1.51)
    assert row.status == "wrong" and row.reason == "drift 0.02, beyond 0.01" and row.busy == 1.5
    nan = measured("x", other, first, 2, 10, drift=float("inf"), limit=0.01)
    assert nan.status == "wrong" and "not finite" in nan.reason and nan.drift is None
    json.loads(nan.model_dump_json(), parse_constant=pytest.fail)
    assert timing([0.001 * i for i in range(1, 101)]).p95_ms == pytest.approx(np.percentile(np.arange(1, 101), 95))


def test_bars_are_as_long_as_their_numbers() -> None:
    svg = bar_chart([("a", [(1.0, "all"), (2.0, "worst")], 0.0, "3"), ("b", [(6.0, "all")], 0.0, "6")], "ms")
    widths = [float(width) for width in re.findall(r'width="([\d.]+)"', svg)]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01) and widths[2] == pytest.approx(6 * widths[0], rel=0.01)
    assert bar_chart([], "ms") == ""


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nothing to measure: give --engine"):
        bench(BenchRequest())
    with pytest.raises(EngineError, match="gray1_cfg on coreml, which the others are held against: provider 'coreml'"):
        bench(BenchRequest((BUNDLES / "gray1_cfg",), ("coreml",), QUICK))
    result = CliRunner().invoke(main, ["bench", "--engine", str(tmp_path / "none")])
    assert result.exit_code == 2 and "does not exist" in result.output and "Traceback" not in result.output


def test_a_report_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["bench", "--engine", str(tmp_path / "none"), "--report", str(tmp_path)])
    assert result.exit_code == 2 and f"cannot write {tmp_path}: it is a folder" in result.output


def test_the_command_prints_writes_and_gives_json(tmp_path: Path) -> None:
    asked = ["bench", "--engine", str(BUNDLES / "gray1_cfg"), "--repeats", "1", "--threads", "1", "--drift-steps", "0"]
    page = tmp_path / "bench.html"
    shown = CliRunner().invoke(main, [*asked, "--report", str(page)])
    assert shown.exit_code == 0, shown.output
    assert "gray1_cfg on cpu" in shown.output and f"wrote {page}" in shown.output and page.is_file()
    document = CliRunner().invoke(main, [*asked, "--json"])
    assert Record.model_validate_json(document.stdout).rows[0].status == "ok"
