"""The search on objectives that are known: shapes, budgets, fronts, what Optuna finds, what a dead process left."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditedge.calibration.pool import Pool
from ditedge.calibration.quality.distances import Moments, frechet_distance, moments_of
from ditedge.calibration.tune.costs import PASSES, Costs
from ditedge.calibration.tune.front import front, promising, spread
from ditedge.calibration.tune.judge import Drawn, Judge, endless_distance, jackknife
from ditedge.calibration.tune.own_features import own_features
from ditedge.calibration.tune.request import Budget, TuneRequest, budget_from_text
from ditedge.calibration.tune.search import Contender, begin_study, candidates, search, tried
from ditedge.calibration.tune.shapes import (
    SOLVERS,
    SPACINGS,
    Shape,
    guidance_of,
    passes_of,
    points,
    program_of,
    ratios_of_model,
)
from ditedge.calibration.tune.space import space_of
from ditedge.calibration.tune.storage import JOURNAL, check_same, opened_storage
from ditedge.runtime import generate, open_bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.samplers.process import NO_BETAS
from ditedge.runtime.samplers.program import check_program

SHAPE = Shape("dpm++2", "timestep", 7.0, 100.0, 0.2, 6, 2, 3, 4.0, 0.5)


class Known:
    """A judge whose distance is known: from the first sigma, the ends, and how many steps there are."""

    def __init__(self) -> None:
        self.drawn: list[int] = []

    def draw(self, session: Any, program: Any, seed: int, count: int, drawn: Drawn) -> bool:
        drawn.features = [np.array([0.0])]
        drawn.program = program  # type: ignore[attr-defined]
        self.drawn.append(count)
        return True

    def distance(self, drawn: Drawn) -> float:
        program = drawn.program  # type: ignore[attr-defined]
        ratio = -program.x0_from[:, 1]  # sigma / alpha of an epsilon model
        guided = np.count_nonzero(program.guidance) / program.steps
        return float(
            abs(math.log(ratio[0] / 40)) + abs(math.log(ratio[-1] / 0.3)) + abs(guided - 0.4) + 8 / program.steps
        )


def known(gray: Path, folder: Path, budget: Budget | None, trials: int, judge: Known) -> Any:
    bundle = open_bundle(gray)
    costs = Costs(0.01, 0.02, 0.001)
    space = space_of(bundle, ("gray",), (costs,), budget)
    with opened_storage(folder / JOURNAL) as storage:
        study = begin_study(storage, "search", space.starts(), budget is not None, 0)
        search(study, space.shape, [Contender("gray", bundle, None, costs)], judge, (4, 8), 0, trials)  # type: ignore[arg-type]
        return study


def test_with_a_budget_the_best_is_found_and_most_trials_end_early(golden_bundle, tmp_path: Path) -> None:
    judge = Known()
    study = known(golden_bundle("gray1_cfg"), tmp_path, Budget(12, passes=True), 70, judge)
    best = candidates(study)[0]
    steps, guided = best.shape.steps, best.shape.guided
    assert steps + guided == 12 and best.cost == pytest.approx(0.001 + (steps - guided) * 0.01 + guided * 0.02)
    assert best.distance < 8 / 9 + 0.5, "8 steps of which 40 % are guided, from 40 to 0.3, leave 8/9"
    assert judge.drawn.count(4) == 70 and judge.drawn.count(8) < 55


def test_without_one_the_front_goes_from_few_to_many_passes(golden_bundle, tmp_path: Path) -> None:
    study = known(golden_bundle("gray1_cfg"), tmp_path, None, 60, Known())
    found = candidates(study)
    best = [found[i] for i in front([(one.cost, one.distance) for one in found])]
    assert len(best) >= 4 and best[0].shape.steps <= 6 and best[-1].cost > 2 * best[0].cost and best[-1].distance < 1.5
    assert all(a.cost < b.cost and a.distance > b.distance for a, b in itertools.pairwise(best))


def test_a_front_is_who_nobody_beats() -> None:
    rng = np.random.default_rng(0)
    points_ = [tuple(map(float, row)) for row in rng.integers(0, 12, (200, 2))] + [(0.0, math.inf), (math.nan, 0.0)]
    finite = points_[:200]
    beaten = {(x, y) for x, y in finite if any((u <= x and v <= y) and (u, v) != (x, y) for u, v in finite)}
    found = [points_[i] for i in front(points_)]  # type: ignore[arg-type]
    assert found == sorted(set(finite) - beaten)
    assert spread([1, 2, 4, 8, 16, 32, 64], 3) == [0, 3, 6] and spread([1, 2], 6) == [0, 1]
    near = [(10.0, float(i)) for i in range(10)]
    assert promising(10.0, 3.5, near) and not promising(10.0, 4.5, near) and promising(20.0, 99.0, near)


def test_what_a_killed_process_left_is_no_trial_and_no_obstacle(golden_bundle, tmp_path: Path) -> None:
    gray, journal = golden_bundle("gray1_cfg"), tmp_path / JOURNAL
    study = known(gray, tmp_path, Budget(8, passes=True), 6, Known())
    before = [(trial.number, trial.params, trial.value) for trial in tried(study)]
    study.ask()  # begun, and never told
    with journal.open("ab") as file:
        file.write(b'{"op_code":5,"worker_id":"x","tri')  # killed while it wrote
    study = known(gray, tmp_path, Budget(8, passes=True), 10, Known())
    after = [(trial.number, trial.params, trial.value) for trial in tried(study)]
    assert after[:6] == before and len(after) == 10
    assert sum(trial.state.name == "FAIL" for trial in study.trials) == 1
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_one_process_at_a_time_and_one_search_a_folder(tmp_path: Path) -> None:
    import optuna

    with opened_storage(tmp_path / JOURNAL) as storage:
        study = optuna.create_study(storage=storage, study_name="search")
        check_same(study, {"budget": "8 passes"}, tmp_path)
        check_same(study, {"budget": "8 passes"}, tmp_path)
        with pytest.raises(RequestError, match="budget 8 passes, this one has 9 passes: give another --out"):
            check_same(study, {"budget": "9 passes"}, tmp_path)
        with pytest.raises(RequestError, match="in use by another process"), opened_storage(tmp_path / JOURNAL):
            pass
    (tmp_path / JOURNAL).write_text("this is no journal\n")
    with pytest.raises(RequestError, match="not the journal of a search"), opened_storage(tmp_path / JOURNAL):
        pass


@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow", "flow-to-data", "edm"])
def test_every_shape_is_a_program_of_the_models_process(golden_bundle, prediction: str) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg", "epsilon" if prediction == "edm" else prediction))
    if prediction == "edm":
        changes = {"prediction": "edm", "timestep_range": NO_BETAS["edm"]}
        model = bundle.manifest.model.model_copy(update=changes)
        bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"model": model, "schedule": None}))
    largest, smallest = ratios_of_model(bundle)
    for sampler, spacing in itertools.product(SOLVERS, SPACINGS):
        gaps = (0.3, -0.5, 0.0, 0.2, 0.1)
        shape = Shape(sampler, spacing, 5.0, largest / 2, 20 * smallest, 6, 2, 3, 4.0, 0.5, gaps, (0.1, -0.2))
        program = program_of(shape, bundle)
        check_program(program)
        ratios = points(shape, bundle)
        assert np.all(np.diff(ratios) < 0) and ratios[[0, -1]] == pytest.approx([largest / 2, 20 * smallest])
        assert passes_of(program, bundle) == 8
    assert np.isfinite(generate(bundle, [1], [0], program=program, output="latents")).all()


def test_guidance_is_a_part_of_the_bundles_and_gaps_stretch(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    assert guidance_of(SHAPE).tolist() == pytest.approx([1, 1, 1, 4, 2.5, 1])
    program = program_of(SHAPE, bundle)
    assert program.guidance.tolist() == pytest.approx([0, 0, 0, 1, 0.5, 0]), "of guidance 4"
    even = Shape("ddim", "log-snr", 7.0, 64.0, 1.0, 3, 0, 0, 1.0, 1.0)
    assert points(even, bundle).tolist() == pytest.approx([64, 8, 1])
    wide = Shape("ddim", "log-snr", 7.0, 64.0, 1.0, 3, 0, 0, 1.0, 1.0, gaps=(math.log(2), 0.0))
    assert points(wide, bundle).tolist() == pytest.approx([64, 4, 1])


def test_budgets_and_what_fits_into_them() -> None:
    assert budget_from_text("2.5s") == Budget(2.5, False) and budget_from_text("40 ms") == Budget(0.04, False)
    assert budget_from_text("15passes") == Budget(15, True)
    assert (
        PASSES.steps_within(6, 0.3) == (5, 1)
        and PASSES.steps_within(15, 0.5) == (10, 5)
        and PASSES.steps_within(8, 0.0) == (8, 0)
    )
    assert Costs(1.0, 1.5, 0.5).steps_within(5.0, 1.0) == (3, 3) and PASSES.steps_within(0.5, 0.0) == (0, 0)
    for text in ("15", "0s", "1.5passes", "-3s", "passes", "1e3s", "nan s"):
        with pytest.raises(RequestError, match="--budget"):
            budget_from_text(text)
    for rungs in (("a",), ("8", "4", "2"), ("1", "2", "3"), ("2", "4"), ("2", "4", "9" * 9)):
        with pytest.raises(RequestError, match="--rungs"):
            TuneRequest((Path("x"),), rungs=rungs).check()


def test_the_noise_of_a_mean_is_what_statistics_say() -> None:
    samples = np.random.default_rng(1).standard_normal(400)
    exact = samples.std(ddof=1) / math.sqrt(400)
    assert jackknife(lambda kept: float(samples[kept].mean()), 400, 400) == pytest.approx(exact)
    assert jackknife(lambda kept: float(samples[kept].mean()), 400) == pytest.approx(exact, rel=0.5)


def test_a_distance_of_few_pictures_does_not_prefer_pictures_that_are_alike() -> None:
    """Of features as they should be, and of such that vary by a fifth less: few samples order them the wrong way."""
    rng = np.random.default_rng(4)
    reference = rng.standard_normal((4000, 24))
    same, alike = rng.standard_normal((32, 24)), 0.8 * rng.standard_normal((32, 24))
    assert frechet_distance(same, reference) > frechet_distance(alike, reference)
    told = moments_of(reference)
    assert endless_distance(same, told) < endless_distance(alike, told) - 1
    many = 0.8 * rng.standard_normal((2000, 24))
    assert endless_distance(many, told) == pytest.approx(24 * 0.2**2, rel=0.1)


def test_the_reference_is_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the larger set by far; figures are what they are of both sets, to the bit."""
    rng, fitted = np.random.default_rng(6), []

    def counted(features: np.ndarray) -> Moments:
        fitted.append(features)
        return moments_of(features)

    monkeypatch.setattr("ditedge.calibration.tune.judge.moments_of", counted)
    reference, features = rng.standard_normal((300, 6)), rng.standard_normal((40, 6))
    judge = Judge(Pool((0,)), pytest.fail, reference, 8)
    drawn = Drawn(features=[features[:30], features[30:]])
    assert judge.measured(drawn).distance == frechet_distance(features, reference)
    judge.distance(drawn)
    assert sum(x is reference for x in fitted) == 1


@pytest.mark.parametrize("shape", [(8, 8, 1), (3, 4, 3), (64, 96, 3)])
def test_our_features_see_more_noise_as_farther(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(2)
    images = rng.integers(60, 190, (20, *shape))
    found = own_features(images.astype(np.uint8))
    assert found.shape == (20, 96) and np.array_equal(found[:5], own_features(images[:5].astype(np.uint8)))
    far = [
        float(np.abs(own_features((images + rng.integers(-n, n + 1, images.shape)).astype(np.uint8)) - found).mean())
        for n in (5, 50)
    ]
    assert 0 < far[0] < far[1]
