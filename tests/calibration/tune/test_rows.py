"""Programs whose rows are given: what `--start` takes from docs/few-steps.json, and what models/ ships of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ditedge.calibration.tune.record import read_tuned
from ditedge.calibration.tune.search import shape_from
from ditedge.calibration.tune.shapes import mix_of_weights, passes_of, program_of
from ditedge.runtime import open_bundle
from ditedge.runtime.errors import ProgramError
from ditedge.runtime.samplers.program import read_program
from tests.calibration.tune.test_search import SHAPE
from tests.calibration.tune.test_tune import QUICK, ditedge, document
from tests.calibration.tune.test_tune_mistakes import bent
from tests.conftest import ROOT

FEW_STEPS = ROOT / "docs" / "few-steps.json"
SHIPPED = sorted((ROOT / "models" / "fashion-programs").glob("*.json"))


def test_weights_become_a_row_that_keeps_the_estimates() -> None:
    """Columns: slots, x0, noise. Weights: of x, x0, the last x0, the one before it."""
    row = mix_of_weights((0.5, 1.2, -0.3, 0.1))
    assert row.tolist() == [[0.5, -0.3, 0.1, 1.2, 0], [0, 0, 0, 1, 0], [0, 1, 0, 0, 0]]
    assert mix_of_weights((0.5, 1.2)).tolist() == [[0.5, 1.2, 0]]


def test_a_samplers_own_weights_as_rows_are_that_sampler(gray_bundle: Path) -> None:
    bundle, shape = open_bundle(gray_bundle), replace(SHAPE, sampler="dpm++2")
    own = program_of(shape, bundle)
    rows = tuple((float(m[0, 0]), float(m[0, -2]), float(m[0, 1])) for m in own.mix)
    same = program_of(replace(shape, rows=rows), bundle)
    for name in ("timestep", "x0_from", "log_sigma", "mix", "guidance", "init"):
        assert np.array_equal(getattr(same, name), getattr(own, name)), name


@pytest.mark.parametrize("rows", [((1.0, 0.0),), ((1.0, 0.0),) * 5 + ((1.0,),), ((1.0,),) * 6, ((1.0, np.nan),) * 6])
def test_rows_that_are_not_one_each_step_are_refused(rows: tuple[tuple[float, ...], ...]) -> None:
    assert SHAPE.steps == 6
    with pytest.raises(ProgramError):
        replace(SHAPE, rows=rows)
    with pytest.raises(ProgramError, match="rows are not one each step"):
        replace(SHAPE, rows=((1.0, 0.0),) * 6, columns=2)


def test_a_start_with_rows_is_measured_and_written(gray_bundle: Path, tmp_path: Path) -> None:
    """Its neighbourhood is not searched: its rows belong to its points."""
    rows = [[0.9, 0.1, 0.0]] * 5 + [[0.0, 1.0, 0.0]]
    start = ("--start", bent(tmp_path, rows=rows), "--trials", 0, "--refine", 2, "--no-baseline")
    told = document("tune", "--engine", gray_bundle, *QUICK, *start, "--out", tmp_path / "t")
    assert [one["shape"]["rows"] for one in told["programs"]] == [rows]
    written = open_bundle(gray_bundle).program(told["programs"][0]["name"])
    assert np.array_equal(written.mix[:, 0], [[x, past, x0, 0] for x, x0, past in rows])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_is_shipped_is_what_was_found(gray_bundle: Path, path: Path) -> None:
    """The demo model and the tiny one have the same process, guidance and kind of answer: the same program."""
    found = next(one for one in read_tuned(FEW_STEPS).measured if one.name == path.stem)
    bundle, shipped = open_bundle(gray_bundle), read_program(path)
    made = program_of(shape_from(found.shape), bundle)
    for name in ("timestep", "x0_from", "log_sigma", "mix", "guidance", "init", "process"):
        assert np.array_equal(getattr(shipped, name), getattr(made, name)), name
    assert passes_of(shipped, bundle) == found.passes == int(path.stem.removeprefix("tuned-"))
    ran = ditedge("run", "--engine", gray_bundle, "--program", path, "--class", 1, "-o", gray_bundle.parent / "a.png")
    assert ran.exit_code == 0, ran.output


def test_both_budgets_are_shipped() -> None:
    assert [path.stem for path in SHIPPED] == ["tuned-15", "tuned-8"]
