"""Rows by least squares: known weights are found, and few steps end nearer to where many do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ditedge.calibration.pool import pool_of
from ditedge.calibration.tune.fit import _reference, fitted_program, least_squares
from ditedge.calibration.tune.judge import latents_of, program_key
from ditedge.calibration.tune.plot import Mark, even_ticks, plot, ticks
from ditedge.calibration.tune.request import TuneRequest
from ditedge.calibration.tune.shapes import program_of
from ditedge.calibration.tune.work import begun
from ditedge.runtime import Session, open_bundle
from ditedge.runtime.report import silent
from ditedge.runtime.samplers.program import check_program
from tests.calibration.quality.test_report import Page
from tests.calibration.tune.test_search import SHAPE


def test_known_weights_are_found_and_little_data_changes_little() -> None:
    rng = np.random.default_rng(0)
    columns = [rng.standard_normal((8, 1, 4, 4)).astype(np.float32) for _ in range(3)]
    weights = np.array([0.5, 1.2, -0.3])
    target = sum(w * column for w, column in zip(weights, columns, strict=True))
    assert least_squares(columns, np.asarray(target), weights * 1.1) == pytest.approx(weights, abs=1e-3)
    same = [columns[0], columns[0], columns[0]]  # what cannot be told apart stays as it was, or nearly
    found = least_squares(same, 2 * columns[0], np.array([1.0, 1.0, 0.0]))
    assert found == pytest.approx([1.0, 1.0, 0.0], abs=1e-6)


@pytest.mark.parametrize(("columns", "spacing"), [(1, "timestep"), (2, "karras"), (3, "log-snr")])
def test_fitted_rows_end_nearer_to_many_steps(golden_bundle, columns: int, spacing: str) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    pool, shape = pool_of(bundle), replace(SHAPE, spacing=spacing, columns=columns)
    with Session(bundle) as session:
        target, _ = _reference(shape, session, pool, 5)
        fitted = fitted_program(shape, session, pool, 5)
        check_program(fitted)
        own = program_of(replace(shape, columns=0, sampler="ddim" if columns == 1 else f"dpm++{columns}"), bundle)
        assert fitted.slots == columns and np.array_equal(fitted.guidance, own.guidance)
        assert np.array_equal(fitted.timestep, own.timestep)
        ends = [latents_of(session, pool, program, 5, 0, len(target[-1])) for program in (fitted, own)]
    errors = [float(np.mean((end - target[-1]) ** 2)) for end in ends]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("sampler", "spacing"), [("dpm++2", "log-snr"), ("dpm++3", "optimised"), ("lms3", "optimised")]
)
def test_fitted_rows_play_on_the_points_that_they_were_fitted_for(
    gray_bundle: Path, tmp_path: Path, sampler: str, spacing: str
) -> None:
    """Where optimised steps lie depends on the order of the sampler, whose own weights are not used then."""
    request = TuneRequest((gray_bundle,), "8passes", rungs=("3", "4", "5"), out=tmp_path / "t")
    shape = replace(SHAPE, sampler=sampler, spacing=spacing, columns=2)
    with begun(request, silent, silent) as work:
        made = work.program(shape, 0)
        fitted = fitted_program(shape, work.contenders[0].session, work.judge.pool, work.seed + request.images[1])
    assert np.array_equal(made.timestep, fitted.timestep) and program_key(made) == program_key(fitted)


def test_a_plot_has_every_point_in_its_place() -> None:
    marks = [Mark(1.0, 2.0, "<a>", "found", 0.5), Mark(4.0, 1.0, "b", "found"), Mark(0.0, 1.0, "none", "found")]
    found = Page(plot(marks, [(1.0, 2.0), (4.0, 1.0)], "seconds", "distance"))
    dots = [attrs for tag, attrs in found.elements if tag == "circle"]
    places = [(float(str(dot["cx"])), float(str(dot["cy"]))) for dot in dots]
    assert len(places) == 2 and places[0][0] < places[1][0] and places[0][1] < places[1][1]
    assert "<a>: 1, 2" in found.text
    assert "nothing to show" in plot([], [], "x", "y")
    below = Page(plot([Mark(1.0, -0.5, "", "tried"), Mark(2.0, 1.0, "", "tried")], [], "x", "y"))
    heights = [float(str(attrs["cy"])) for tag, attrs in below.elements if tag == "circle"]
    assert heights[0] > heights[1] and even_ticks([-0.5, 1.0]) == [-0.5, 0.0, 0.5, 1.0]
    assert ticks([0.8, 12.0]) == [1, 2, 3, 5, 10] and ticks([1.0, 1.5]) == [1.0, 1.2, 1.4]
