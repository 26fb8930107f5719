"""`bench --all`: one table of every precision and engine, whatever fails on the way."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from ditedge.calibration import every
from ditedge.calibration.every import Variant, bench_every, providers_here, variants
from ditedge.calibration.formats import FORMATS
from ditedge.cli import main
from ditedge.runtime import open_bundle
from ditedge.runtime.bench.request import BenchRequest, BenchSettings
from ditedge.runtime.errors import RequestError
from tests.conftest import BUNDLES

GRAY = BUNDLES / "gray1_cfg"
QUICK = BenchSettings(threads=1, repeats=1, drift_steps=2)


def test_every_format_is_in_the_table() -> None:
    bundle = open_bundle(GRAY)
    assert [variant.name for variant in variants(bundle, ["cpu"]) if not variant.static] == ["float32", *FORMATS]
    static = [variant.name for variant in variants(bundle, ["cpu", "openvino"]) if variant.static]
    assert "int8-static" in static, "OpenVINO runs int8 with fixed scales"
    assert "cpu" in providers_here() and "coreml" not in providers_here()


def test_what_fails_is_a_row_among_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's mistake, a bug in a library, and an engine that refuses the graph; and the bundle that works is kept."""

    def broken(out: Path, report: object) -> None:
        raise ZeroDivisionError("in somebody's library")

    def chosen(bundle: object, providers: object) -> list[Variant]:
        return [
            Variant("float32", None),
            Variant("broken", broken),
            Variant("refused", partial(every._quantised, GRAY, "int8", "no such form")),
            Variant("bf16", partial(every._converted, GRAY, "bf16")),
            Variant("fp16", partial(every._converted, GRAY, "fp16")),
        ]

    monkeypatch.setattr(every, "variants", chosen)
    record = bench_every(BenchRequest((GRAY,), ("cpu",), QUICK, every=True, keep=tmp_path / "kept"))
    rows = {row.name: row for row in record.rows}
    assert list(rows) == ["float32 on cpu", "broken", "refused", "bf16 on cpu", "fp16 on cpu"]
    assert rows["broken"].reason == "ZeroDivisionError: in somebody's library"
    assert "no such form" in rows["refused"].reason and "bfloat16" in rows["bf16 on cpu"].reason
    assert [rows[name].status for name in ("float32 on cpu", "fp16 on cpu")] == ["ok", "ok"]
    assert 0 < rows["fp16 on cpu"].drift < 0.02 and rows["fp16 on cpu"].megabytes < rows["float32 on cpu"].megabytes
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"bf16", "fp16"}, "nothing else is left there"
    assert open_bundle(tmp_path / "kept" / "fp16").manifest.graphs["step"].precision == "float16"


def test_another_network_is_told_from_a_coarse_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built, and wrong: its drift is beyond what its own tolerance explains."""
    monkeypatch.setattr("ditedge.runtime.bench.measure.TOLERANCE", 1e-9)
    monkeypatch.setattr("ditedge.runtime.bench.measure.MARGIN", 0.0)
    monkeypatch.setattr(
        every,
        "variants",
        lambda *_: [Variant("float32", None), Variant("fp16", partial(every._converted, GRAY, "fp16"))],
    )
    record = bench_every(BenchRequest((GRAY,), ("cpu",), QUICK, every=True))
    assert record.rows[1].status == "wrong" and "beyond 1e-09" in record.rows[1].reason


def test_mistakes_are_sentences() -> None:
    with pytest.raises(RequestError, match="give --engine once, not 2"):
        bench_every(BenchRequest((GRAY, GRAY), every=True))
    result = CliRunner().invoke(main, ["bench", "--engine", str(GRAY), "--keep", "x"])
    assert result.exit_code == 2 and "--keep x is for the bundles of --all" in result.output
