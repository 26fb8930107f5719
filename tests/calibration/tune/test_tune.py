"""`tune` as a command, on a tiny bundle: found, written, played, gone on with, refused."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from ditedge.calibration import accuracy, frechet_distance, image_features
from ditedge.calibration.tune import writing
from ditedge.calibration.tune.reference import OWN_FILE
from ditedge.calibration.tune.request import TuneRequest
from ditedge.calibration.tune.storage import JOURNAL
from ditedge.calibration.tune.work import begun
from ditedge.calibration.tune.writing import add_programs
from ditedge.cli import main
from ditedge.runtime import generate, open_bundle
from ditedge.runtime.report import silent
from tests.calibration.quality.feature_models import feature_model
from tests.calibration.quality.test_report import Page
from tests.calibration.variants import rounded, variant
from tests.conftest import ROOT

QUICK = ("--rungs", "3,6,9", "--trials", 8, "--refine", 2, "--batch", 8)


def ditedge(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def document(*arguments: object) -> Any:
    result = ditedge(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A feature extractor of 8 x 8 pictures, and pictures."""
    folder = tmp_path_factory.mktemp("seen")
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
    np.savez(folder / "real.npz", images=images)
    return feature_model(folder / "f.onnx", outputs=("logits", "features")), folder / "real.npz"


@pytest.fixture
def quick(seen: tuple[Path, Path]) -> tuple[object, ...]:
    """A short search in few features: distances in the 96 of our own are most of what it costs."""
    return (*QUICK, "--features", seen[0], "--reference", seen[1])


def test_what_is_found_is_in_the_bundle_and_plays_as_it_was_measured(
    gray_bundle: Path, tmp_path: Path, seen: tuple[Path, Path], quick: tuple[object, ...]
) -> None:
    features, real = seen
    before = open_bundle(gray_bundle)
    told = document(
        *("tune", "--engine", gray_bundle, "--budget", "6passes", *quick, "--out", tmp_path / "t"),
    )
    [found] = told["programs"]
    assert found["name"] == f"tuned-{found['passes']}" and found["passes"] <= 6 and found["written"]
    bundle = open_bundle(gray_bundle)  # looks at every hash
    assert bundle.programs.keys() == before.programs.keys() | {found["name"]}
    assert bundle.manifest.defaults == before.manifest.defaults
    program = bundle.program(found["name"])
    assert program.steps + np.count_nonzero(program.guidance) == found["passes"]
    images = generate(bundle, [i % 10 for i in range(9)], range(9), program=program, batch=8)
    logits, mine = image_features(features, images)
    _, theirs = image_features(features, np.load(real)["images"])
    assert found["figures"]["distance"] == pytest.approx(frechet_distance(mine, theirs), rel=1e-6)
    assert found["figures"]["accuracy"] == accuracy(logits, np.arange(9) % 10) and found["seconds"] > 0
    assert program.made["tune"]["distance"] == found["figures"]["distance"]
    check_page(tmp_path / "t" / "report.html", told, images)

    picture, again = tmp_path / "p.png", tmp_path / "again.png"
    alone = tmp_path / "t" / found["file"]
    run = ("run", "--engine", gray_bundle, "--class", 3, "--seed", 3)
    for name, out in ((found["name"], picture), (alone, tmp_path / "file.png")):
        assert ditedge(*run, "--program", name, "-o", out).exit_code == 0
    assert ditedge("run", "--engine", gray_bundle, "--like", picture, "-o", again).exit_code == 0
    assert picture.read_bytes() == again.read_bytes()


def check_page(path: Path, told: Any, images: np.ndarray) -> None:
    """Well-formed, nothing from outside, a point for every measured program, and the program's pictures themselves."""
    shown = Page(path.read_text())
    assert not [value for _, attrs in shown.elements for key, value in attrs.items() if key in ("href", "src") and not (value or "").startswith("data:")]  # fmt: skip
    dots = [attrs for tag, attrs in shown.elements if tag == "circle"]
    assert len(dots) == len(told["measured"]) + 1 + len(told["trial_points"])
    assert f"{told['programs'][0]['figures']['distance']:.4g}" in shown.text
    sources = [str(attrs["src"]) for tag, attrs in shown.elements if tag == "img"]
    assert len(sources) == 2
    with Image.open(io.BytesIO(base64.b64decode(sources[1].partition(",")[2]))) as picture:
        pixels = np.asarray(picture)[::16, ::16]  # 8 pixels are shown as 128
    assert np.array_equal(pixels[:8, :8], images[0, ..., 0])


def test_a_search_goes_on_and_measures_nothing_twice(
    gray_bundle: Path, tmp_path: Path, quick: tuple[object, ...]
) -> None:
    tune = ("tune", "--engine", gray_bundle, *quick, "--out", tmp_path / "t", "--budget", "6passes")
    first = document(*tune)
    lines = (tmp_path / "t" / JOURNAL).read_text().splitlines()
    again = document(*tune)
    assert again["programs"] == first["programs"]
    new = (tmp_path / "t" / JOURNAL).read_text().splitlines()[len(lines) :]
    assert not [line for line in new if "last gray" in line or "distance" in line], "it measured again"
    more = document(*tune[:-4], "--trials", 10, *tune[-4:])
    assert (first["trials"], more["trials"]) == (8, 10)
    assert 0 < first["seconds"] < again["seconds"] < more["seconds"], "of all runs together"
    other = ditedge(*tune[:-1], "7passes")
    assert other.exit_code == 2 and "budget 6 passes, this one has 7 passes" in other.stderr


def test_another_search_in_the_folder_has_a_reference_of_its_own(gray_bundle: Path, tmp_path: Path) -> None:
    """The journal is what the user is told to remove; the samples beside it are of the search that it was of."""
    folder, kept = tmp_path / "t", tmp_path / "t" / OWN_FILE

    def reference(folder: Path, seed: int) -> np.ndarray:
        with begun(TuneRequest((gray_bundle,), rungs=("3", "6", "9"), seed=seed, out=folder), silent, silent) as work:
            return work.judge.reference

    first = reference(folder, 0)
    written = kept.stat().st_mtime_ns
    assert np.array_equal(reference(folder, 0), first)
    assert kept.stat().st_mtime_ns == written, "the same search samples them once"
    (folder / JOURNAL).unlink()
    other = reference(folder, 7)
    assert not np.array_equal(other, first) and np.array_equal(np.load(kept), other)
    assert np.array_equal(reference(tmp_path / "alone", 7), other)


def test_after_a_kill_the_trials_are_there(gray_bundle: Path, tmp_path: Path) -> None:
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from ditedge.calibration.tune.request import TuneRequest
        from ditedge.calibration.tune.tune import tune
        def report(what, done=0, total=0):
            if what.startswith("trials") and done == 4:
                os.kill(os.getpid(), signal.SIGKILL)
        folder = Path(sys.argv[1])
        tune(TuneRequest((folder / "gray",), "6passes", rungs=("3", "6", "9"), trials=8, refine=0, out=folder / "t"), report)
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, capture_output=True)
    assert killed.returncode == -9, killed.stderr
    tune = (
        "tune",
        "--engine",
        gray_bundle,
        "--rungs",
        "3,6,9",
        "--refine",
        0,
        "--out",
        tmp_path / "t",
        "--budget",
        "6passes",
    )
    assert document(*tune, "--trials", 4)["trials"] == 4, "nothing was left to try"
    assert document(*tune, "--trials", 6)["trials"] == 6


def test_two_precisions_have_programs_of_their_own(
    gray_bundle: Path, tmp_path: Path, quick: tuple[object, ...]
) -> None:
    """Without a budget: a front, of both."""
    coarse = variant(gray_bundle, tmp_path / "coarse", rounded(15))
    both = ("--engine", gray_bundle, "--engine", coarse)
    told = document("tune", *both, *quick, "--refine", 0, "--out", tmp_path / "t")
    assert {one["engine"] for one in told["programs"]} == {"gray", "coarse"}
    on_front = [one for one in told["programs"] if one["on_front"]]
    on_front.sort(key=lambda one: one["seconds"])
    distances = [one["figures"]["distance"] for one in on_front]
    assert on_front and distances == sorted(distances, reverse=True)
    for folder in (gray_bundle, coarse):
        names = {one["name"] for one in told["programs"] if one["engine"] == folder.name}
        assert names == {name for name in open_bundle(folder).programs if name.startswith("tuned-")}


def test_what_one_search_measured_takes_part_in_another(
    gray_bundle: Path, tmp_path: Path, quick: tuple[object, ...]
) -> None:
    """Of another precision, without a trial of its own; the default program is left out where nobody asks for it."""
    first = document("tune", "--engine", gray_bundle, *quick, "--budget", "6passes", "--out", tmp_path / "a")
    coarse = variant(gray_bundle, tmp_path / "coarse", rounded(15))
    start = ("--start", tmp_path / "a" / "tune.json", "--trials", 0, "--refine", 0, "--no-baseline")
    told = document("tune", "--engine", coarse, *quick, "--budget", "6passes", "--out", tmp_path / "b", *start)
    shapes = [{**one["shape"], "columns": 0} for one in first["measured"]]
    assert told["trials"] == 0 and told["baseline"] is None and told["programs"]
    assert all({**one["shape"], "columns": 0} in shapes for one in told["measured"])
    fewer = ditedge("tune", "--engine", coarse, *quick, "--budget", "2passes", "--out", tmp_path / "c", *start)
    assert fewer.exit_code == 2 and "none of 0 trials made pictures" in fewer.stderr


def test_the_cheapest_that_is_good_enough_or_a_sentence(
    gray_bundle: Path, tmp_path: Path, quick: tuple[object, ...]
) -> None:
    tune = ("tune", "--engine", gray_bundle, *quick, "--budget", "12passes", "--out", tmp_path / "t")
    every = document(*tune, "--min-quality", 1e9)["programs"]
    assert len(every) == 1
    best = document(*tune)["programs"][0]
    assert best["figures"]["distance"] <= every[0]["figures"]["distance"] and best["passes"] >= every[0]["passes"]
    names = set(open_bundle(gray_bundle).programs)
    missed = ditedge(*tune, "--min-quality", 1e-9)
    assert missed.exit_code == 2 and "--min-quality 1e-09 was not reached: the best distance is" in missed.stderr
    assert set(open_bundle(gray_bundle).programs) == names


def test_the_bundle_is_whole_at_every_moment(gray_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(gray_bundle)
    five, ten = bundle.program(steps=5), bundle.program(steps=10)
    add_programs(bundle, {"tuned-5": five, "tuned-7": five})
    after = open_bundle(gray_bundle)
    files = set(after.manifest.files)

    def cut(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "write_text", cut)
    with pytest.raises(KeyboardInterrupt):
        add_programs(after, {"tuned-5": ten})
    assert open_bundle(gray_bundle).program("tuned-5").steps == 5
    monkeypatch.undo()
    add_programs(after, {"tuned-5": ten})
    last = open_bundle(gray_bundle)
    assert last.program("tuned-5").steps == 10 and "tuned-7" not in last.programs
    here = {path.relative_to(gray_bundle).as_posix() for path in gray_bundle.rglob("*") if path.is_file()}
    assert here == {"manifest.json", *last.manifest.files} and len(files) == len(last.manifest.files) + 1


def test_a_program_that_is_the_default_is_not_taken_away(gray_bundle: Path) -> None:
    bundle = open_bundle(gray_bundle)
    add_programs(bundle, {"tuned-5": bundle.program(steps=5)})
    manifest = json.loads((gray_bundle / "manifest.json").read_text())
    manifest["defaults"]["program"] = "tuned-5"
    (gray_bundle / "manifest.json").write_text(json.dumps(manifest))
    add_programs(open_bundle(gray_bundle), {"tuned-7": bundle.program(steps=7)})
    after = open_bundle(gray_bundle)
    assert (after.program("tuned-5").steps, after.program("tuned-7").steps) == (5, 7)
    add_programs(after, {"tuned-5": bundle.program(steps=6)})
    last = open_bundle(gray_bundle)
    assert last.program("tuned-5").steps == 6 and "tuned-7" not in last.programs
