"""`tune` refuses in one line what it cannot do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ditedge.calibration.tune.record import Figures, Found, Judged, Tuned, read_tuned
from ditedge.calibration.tune.request import TuneRequest
from ditedge.calibration.tune.work import check_bundles
from ditedge.runtime import open_bundle
from ditedge.runtime.errors import RequestError
from tests.calibration.tune.test_search import SHAPE
from tests.calibration.tune.test_tune import QUICK, ditedge


def bent(folder: Path, **changes: object) -> Path:
    """A tune.json with one measured program, whose shape is changed."""
    figures = Figures(images=9, seed=0, distance=1.0, noise=0.1, kernel=0.0, accuracy=None)
    shape = {**asdict(SHAPE), **changes}
    found = Found(name="tuned-8", engine="gray", file=None, passes=8, steps=6, guided=2, seconds=1.0, figures=figures, shape=shape)  # fmt: skip
    judged = Judged(features=None, features_sha256=None, dimensions=96, reference="own", reference_count=9)
    tuned = Tuned(
        made_by="test", engines=["gray"], engine_sha256=["0"], guidance=4.0, budget=None, min_quality=None,
        judged=judged, rungs=[3, 6, 9], seed=0, trials=1, pruned=0, seconds=1.0, machine="test", costs=[{}],
        baseline=None, programs=[], measured=[found], trial_points=[(1.0, 2.0)],
    )  # fmt: skip
    path = folder / "tune.json"
    path.write_text(tuned.model_dump_json())
    assert read_tuned(path).model_dump_json() == tuned.model_dump_json()
    return path


BAD: dict[str, tuple[Callable[[Path], list[object]], str]] = {
    "a budget of nothing": (lambda f: ["--budget", "0s"], "--budget 0s: give seconds"),
    "one pass": (lambda f: ["--budget", "1passes"], "--budget of 1 passes: two steps take 2 passes"),
    "no time at all": (lambda f: ["--budget", "0.000001s", *QUICK], "s on this machine: give at least as much"),
    "rungs that fall": (lambda f: ["--rungs", "9,6,3"], "--rungs 9,6,3: give three numbers that rise"),
    "features alone": (lambda f: ["--features", f / "f.onnx"], "belong together"),
    "features that are not there": (lambda f: ["--features", f / "no", "--reference", f / "no"], "no does not exist"),
    "a distance below 0": (lambda f: ["--min-quality", -1], "--min-quality -1: a distance is above 0"),
    "prompts for classes": (lambda f: ["--prompts", f / "p.txt"], "takes classes: leave --prompts"),
    "the same bundle twice": (lambda f: ["--engine", f / "gray"], "two bundles are called 'gray'"),
    "two models": (lambda f: ["--engine", f / "latent"], "cannot be tuned together: latent channels 1 and 4"),
    "no trials": (lambda f: ["--trials", 0], "--trials 0 is for what another search found: give its --start"),
    "a start that is not there": (lambda f: ["--start", f / "no.json"], "no.json: No such file"),
    "a start of something else": (
        lambda f: ["--start", f / "gray" / "manifest.json"],
        "manifest.json: not what `tune` writes: ",
    ),
    "a start of no shape": (lambda f: ["--start", bent(f, sampler="magic")], "has a program that cannot be made"),
    "a start of text": (lambda f: ["--start", bent(f, rho="x")], "has a program that cannot be made"),
    "a start with another field": (lambda f: ["--start", bent(f, more=1)], "has a program that cannot be made"),
    "seeds that end": (lambda f: ["--seed", 2**64 - 1], "end above 2**64"),
    "a file as folder": (lambda f: ["--out", f / "gray" / "manifest.json"], "cannot write"),
    "a signed bundle": (
        lambda f: (f / "gray" / "manifest.json.sig").write_text("{}") and [],
        "is signed, and programs would change what was signed: give --no-write",
    ),
    "a bundle with plans": (
        lambda f: (
            (f / "gray" / "engines" / "x").mkdir(parents=True)
            or ((f / "gray" / "engines" / "x" / "build.json").write_text("{}") and [])
        ),
        "has plans, which belong to its manifest",
    ),
}


@pytest.mark.parametrize("mistake", BAD)
def test_mistakes_get_one_line(
    gray_bundle: Path, golden_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(golden_bundle("latent4_learned_sigma"), tmp_path / "latent")
    make, complaint = BAD[mistake]
    result = ditedge("tune", "--engine", gray_bundle, *make(tmp_path))
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert result.exit_code == 2 and len(errors) == 1 and complaint in errors[0], result.output
    assert "Traceback" not in result.output


def test_models_that_are_told_how_far_a_step_goes_are_refused(gray_bundle: Path) -> None:
    bundle = open_bundle(gray_bundle)
    model = bundle.manifest.model.model_copy(update={"prediction": "mean-flow"})
    told = replace(bundle, manifest=bundle.manifest.model_copy(update={"model": model}))
    with pytest.raises(RequestError, match="gray is told how far its steps go"):
        check_bundles(TuneRequest((gray_bundle,)), [told])
