"""`tune` with its pictures sampled by Ray's workers, and with a set of `sample-set`: the figures are what they were."""

from __future__ import annotations

import itertools
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ditedge.calibration.tune.judge import Asked
from ditedge.calibration.tune.reference import OWN_FILE
from ditedge.calibration.tune.request import TuneRequest
from ditedge.calibration.tune.work import begun
from ditedge.runtime.report import silent
from ditedge.runtime.sets import on_ray
from ditedge.runtime.sets.request import RayOptions, SampleSetRequest
from ditedge.runtime.sets.sample import sample_set
from tests.calibration.quality.feature_models import feature_model
from tests.calibration.tune.test_tune import ditedge, document
from tests.conftest import overheat
from tests.runtime.sets.test_on_ray import Crew, Died, needs_ray

QUICK = ("--budget", "6passes", "--rungs", "3,6,9", "--trials", 6, "--refine", 2, "--batch", 2, "--no-write")
ON_RAY = ("--ray", "local", "--workers", 2)


class Hired(Crew):
    """Ray whose workers are in this process, sent what they are sent, and heard in any order."""

    def __init__(self) -> None:
        super().__init__({})
        self.staff: list[on_ray.Worker] = []
        self.sampled: list[Asked] = []
        self.before: Callable[[], None] = lambda: None
        self.clusters = self.ended = 0
        self.order = np.random.default_rng(0)
        self.cluster_resources = lambda: {"CPU": 2}

    def remote(self, **settings: object) -> Callable[[type], SimpleNamespace]:
        assert settings == {"num_cpus": 1, "num_gpus": 0.0, "max_restarts": -1}
        return lambda kind: SimpleNamespace(remote=lambda make: self._hire(kind(pickle.loads(pickle.dumps(make)))))

    def _hire(self, worker: on_ray.Worker) -> SimpleNamespace:
        self.staff.append(worker)
        return self._worker(len(self.staff) - 1)

    def wait(self, refs: list, num_returns: int) -> tuple[list, list]:
        return [refs[self.order.integers(len(refs))]], []

    def sample(self, batch: Any, number: int) -> np.ndarray:
        self.before()
        made = self.staff[number].sample(pickle.loads(pickle.dumps(batch)))
        self.sampled.append(batch)
        return made

    @contextmanager
    def cluster(self, options: object) -> Iterator[Hired]:
        self.clusters += 1
        try:
            yield self
        finally:
            self.ended += 1


@pytest.fixture
def hired(monkeypatch: pytest.MonkeyPatch) -> Hired:
    ray = Hired()
    monkeypatch.setattr(on_ray, "_cluster", ray.cluster)
    monkeypatch.setitem(sys.modules, "ray", ray)  # the command asks whether it is installed
    return ray


@pytest.fixture
def tune(gray_bundle: Path, tmp_path: Path) -> tuple[object, ...]:
    features = feature_model(tmp_path / "f.onnx", outputs=("logits", "features"))
    np.savez(tmp_path / "real.npz", images=np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1)).astype(np.uint8))
    return ("tune", "--engine", gray_bundle, *QUICK, "--features", features, "--reference", tmp_path / "real.npz")


def figures(told: Any) -> list[Any]:
    """What pictures say of every program that was measured; seconds are of the clock."""
    assert told["measured"] and told["baseline"]
    measured = [{**one, "seconds": 0, "on_front": 0} for one in (told["baseline"], *told["measured"])]
    return [measured, told["pruned"], [distance for _, distance in told["trial_points"]], told["judged"]]


def test_figures_are_the_same_and_the_search_goes_on_without(
    tune: tuple[object, ...], tmp_path: Path, hired: Hired
) -> None:
    here = document(*tune, "--out", tmp_path / "here")
    assert hired.clusters == 0
    there = document(*tune, "--out", tmp_path / "there", *ON_RAY)
    assert figures(there) == figures(here)
    assert (hired.clusters, hired.ended, len(hired.staff)) == (1, 1, 2)
    last = [batch for batch in hired.sampled if batch.seed == 0]
    assert sum(batch.size for batch in last) == 9 * (1 + len(there["measured"]))
    assert {number for number, _ in hired.asked} == {0, 1}
    for more in (ON_RAY, ()):
        assert document(*tune, "--out", tmp_path / "there", *more)["programs"] == there["programs"]
    assert hired.clusters == 1, "nothing was left to sample"


def test_figures_are_the_same_whoever_dies(tune: tuple[object, ...], tmp_path: Path, hired: Hired) -> None:
    asked = itertools.count()

    def dies() -> None:
        if next(asked) in (0, 3, 10):
            raise Died

    here = document(*tune, "--out", tmp_path / "here")
    hired.before = dies
    assert figures(document(*tune, "--out", tmp_path / "there", *ON_RAY)) == figures(here)


def test_the_models_own_samples_are_the_same(gray_bundle: Path, tmp_path: Path, hired: Hired) -> None:
    for name, ray in {"here": RayOptions(), "there": RayOptions("local")}.items():
        request = TuneRequest((gray_bundle,), rungs=("3", "6", "9"), batch=4, ray=ray, out=tmp_path / name)
        with begun(request, silent, silent) as work:
            assert work.judge.reference.shape == (12, 96)
    assert sum(batch.size for batch in hired.sampled) == 12
    assert (tmp_path / "here" / OWN_FILE).read_bytes() == (tmp_path / "there" / OWN_FILE).read_bytes()


def test_programs_that_overflow_make_no_pictures_there_either(
    gray_bundle: Path, tune: tuple[object, ...], tmp_path: Path, hired: Hired
) -> None:
    overheat(gray_bundle, 1)
    result = ditedge(*tune, "--out", tmp_path / "t", *ON_RAY)
    assert result.exit_code == 2 and "none of 6 trials made pictures" in result.stderr and hired.sampled


def test_after_ctrl_c_the_search_goes_on(tune: tuple[object, ...], tmp_path: Path, hired: Hired) -> None:
    def stopped() -> None:
        if len(hired.sampled) == 5:
            raise KeyboardInterrupt

    hired.before = stopped
    result = ditedge(*tune, "--out", tmp_path / "t", *ON_RAY)
    assert result.exit_code and "what was tried is kept in" in result.stderr and hired.ended == 1
    hired.before = lambda: None
    assert document(*tune, "--out", tmp_path / "t", *ON_RAY)["trials"] == 6


def test_a_set_is_a_reference(gray_bundle: Path, tune: tuple[object, ...], tmp_path: Path) -> None:
    sample_set(SampleSetRequest(gray_bundle, 40, tmp_path / "set", format="npz"))
    with np.load(tmp_path / "set" / "samples.npz") as arrays:
        np.savez(tmp_path / "same.npz", images=arrays["arr_0"][..., :1])
    tune = (*tune[:-1], tmp_path / "set", "--trials", 1, "--refine", 0)
    of_set = document(*tune, "--out", tmp_path / "a")
    tune = tuple(tmp_path / "same.npz" if part == tmp_path / "set" else part for part in tune)
    [measured, *_, judged] = figures(document(*tune, "--out", tmp_path / "b"))
    assert figures(of_set)[0] == measured
    assert (of_set["judged"]["reference"], of_set["judged"]["reference_count"]) == ("set", 40)
    assert judged["reference"] == "same.npz"


@pytest.mark.slow
@needs_ray
def test_on_rays_workers_the_figures_are_the_same(tune: tuple[object, ...], tmp_path: Path) -> None:
    here, there = (document(*tune, "--out", tmp_path / name, *more) for name, more in (("a", ()), ("b", ON_RAY)))
    assert figures(here) == figures(there)
