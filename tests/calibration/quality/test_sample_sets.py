"""`compare` and `quantize` with pictures of `sample-set`, and spread over Ray's workers: the figures stay what they were."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from ditedge.calibration import CompareRequest, compare_bundles, read_quality
from ditedge.calibration.quality.forecast import report_evaluations
from ditedge.calibration.quality.record import Quality
from ditedge.runtime import open_bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.samplers.settings import SamplerSettings
from ditedge.runtime.sets.finished import finished_set
from ditedge.runtime.sets.request import RayOptions, SampleSetRequest
from ditedge.runtime.sets.sample import sample_set
from tests.calibration.variants import edit_weights, variant
from tests.conftest import BUNDLES, PIXART
from tests.test_cli import ditedge

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ditedge[ray] is not installed")
COUNT, BATCH, STEPS = 20, 4, 3  # two of each class
QUICK: dict[str, Any] = {"count": COUNT, "batch": BATCH, "steps": STEPS, "speed_rounds": 0}


def sampled(bundle: Path, out: Path, **change: Any) -> Path:
    asked = {"count": 2 * COUNT, "batch": BATCH, "balanced": True, "settings": SamplerSettings(steps=STEPS)}
    sample_set(SampleSetRequest(bundle, out=out, **{**asked, **change}))
    return out


@pytest.fixture(scope="session")
def pictures(gray: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sampled(gray, tmp_path_factory.mktemp("sets") / "gray", format="npz")


def measured(quality: Quality) -> dict[str, Any]:
    """What pictures say."""
    return {"pixels": quality.pixels, "features": quality.features}


@pytest.mark.parametrize("form", ["npz", "png"])
def test_what_pictures_say_is_the_same_and_a_is_sampled_once(
    gray: Path, coarse: Path, features: Path, pictures: Path, made: list[int], tmp_path: Path, form: str
) -> None:
    folder = pictures if form == "npz" else sampled(gray, tmp_path / "png")
    without = compare_bundles(gray, coarse, CompareRequest(**QUICK, features=features))
    made.clear()
    request = CompareRequest(**QUICK, features=features, sample_set=folder)
    comparison = compare_bundles(gray, coarse, request)
    quality = comparison.quality
    assert sum(made) == report_evaluations(open_bundle(gray), request)
    assert measured(quality) == measured(without.quality) and quality.settings.sample_set == folder.name
    assert (comparison.images_a == without.images_a).all()
    first = compare_bundles(gray, coarse, CompareRequest(**QUICK | {"count": BATCH})).quality
    assert (quality.drift, quality.steps) == (first.drift, first.steps)
    assert quality.drift_between_seeds_count == BATCH


def test_images_that_are_not_finite_are_counted_behind_the_first_batch_too(
    gray: Path, pictures: Path, tmp_path: Path
) -> None:
    broken = variant(gray, tmp_path / "broken", edit_weights(lambda w: w * float("nan")))
    assert compare_bundles(gray, broken, CompareRequest(**QUICK, sample_set=pictures)).quality.drift.broken == COUNT


@pytest.mark.parametrize(
    ("change", "asked", "sentence"),
    [
        ({"seed": 5}, {}, "is another set: its seed is 5, not 0: give one of `sample-set --balanced` of A"),
        ({"settings": SamplerSettings(steps=2)}, {}, "is another set: its program is"),
        ({"balanced": False}, {}, "its balanced is False, not True"),
        ({"batch": 8}, {}, "its batch is 8, not 4"),
        ({"guidance": 1.0}, {}, "its guidance is 1.0, not 4.0"),
        ({"shard": "1/2"}, {}, "is not whole: run its `ditedge sample-set`, or `ditedge merge`, to the end"),
        ({"count": COUNT - 1}, {}, "has 19 images, and 20 are needed"),
        ({"count": 3 * COUNT}, {"features": True, "count": 23}, "--count 23 is no multiple of 10 classes"),
    ],
)
def test_another_set_is_refused(
    gray: Path, coarse: Path, features: Path, tmp_path: Path, change: dict, asked: dict, sentence: str
) -> None:
    folder = sampled(gray, tmp_path / "set", **change)
    request = {**QUICK, **asked, "features": features if "features" in asked else None}
    with pytest.raises(RequestError, match=sentence):
        compare_bundles(gray, coarse, CompareRequest(**request, sample_set=folder))


def test_a_set_of_another_bundle_and_what_is_none(gray: Path, coarse: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="gray is another set: its bundle.* is .*, not "):
        compare_bundles(coarse, gray, CompareRequest(**QUICK, sample_set=pictures))
    with pytest.raises(RequestError, match=r"has no set.json: it is no folder of `ditedge sample-set`"):
        compare_bundles(gray, coarse, CompareRequest(**QUICK, sample_set=tmp_path))
    with pytest.raises(RequestError, match="takes prompts, and --sample-set is for models of classes"):
        compare_bundles(BUNDLES / PIXART, BUNDLES / PIXART, CompareRequest(**QUICK, sample_set=pictures))


def test_a_set_of_arrays_with_another_header_is_no_set(gray: Path, tmp_path: Path) -> None:
    found = finished_set(sampled(gray, tmp_path / "set", format="npz"))
    file = found.folder / "samples.npz"
    file.write_bytes(file.read_bytes().replace(b"(40, 8, 8, 3)", b"(40, 8, 8, 4)"))
    with pytest.raises(RequestError, match="is not whole"):
        finished_set(found.folder)
    with pytest.raises(RequestError, match=r"samples.npz: not the arrays of this set"):
        found.read(range(40))


def test_a_set_is_a_reference(gray: Path, coarse: Path, features: Path, pictures: Path, tmp_path: Path) -> None:
    """Arrays have three channels, and the model one."""
    same = sampled(gray, tmp_path / "png")
    found = [
        compare_bundles(gray, coarse, CompareRequest(**QUICK, features=features, reference=folder)).quality.features
        for folder in (pictures, same)
    ]
    assert found[0].reference_count == 2 * COUNT
    assert found[0].b.frechet_distance == pytest.approx(found[1].b.frechet_distance, rel=1e-9)


def test_quantize_says_what_of_it_was_known(gray: Path, pictures: Path, tmp_path: Path) -> None:
    options = ["--engine", gray, "--count", COUNT, "--steps", STEPS, "--sample-set"]
    result = ditedge("quantize", *options, pictures, "--out", tmp_path / "no")
    assert result.exit_code == 2 and "its batch is 4, not 16" in result.stderr and not (tmp_path / "no").exists()
    known = sampled(gray, tmp_path / "set", batch=16)
    assert ditedge("quantize", *options, known, "--out", tmp_path / "int8").exit_code == 0
    quality = read_quality(tmp_path / "int8" / "quality" / "quality.json")
    assert (quality.settings.sample_set, quality.settings.count) == ("set", COUNT)
    assert "errors and drift are of the first 16 images" in (tmp_path / "int8/quality/report.html").read_text()
    result = ditedge("compare", *options[:2], "--against", tmp_path / "int8", *options[2:], known, "--speed-rounds", 0)
    assert "20 images" in result.stdout and "; A's pictures of set" in result.stdout


@pytest.mark.slow
@needs_ray
@pytest.mark.parametrize("model", ["classes", "prompts", "set"])
def test_on_rays_workers_the_figures_are_the_same(
    gray: Path, coarse: Path, features: Path, pictures: Path, model: str
) -> None:
    a, b = (BUNDLES / PIXART, BUNDLES / PIXART) if model == "prompts" else (gray, coarse)
    more = {} if model == "prompts" else {"features": features}
    more |= {"sample_set": pictures} if model == "set" else {}
    here = compare_bundles(a, b, CompareRequest(**QUICK, **more)).quality
    there = compare_bundles(a, b, CompareRequest(**QUICK, **more, ray=RayOptions("local", 2))).quality
    assert there == here


@pytest.mark.slow
@needs_ray
def test_the_report_of_quantize_on_rays_workers(gray: Path, tmp_path: Path) -> None:
    options = ["--engine", gray, "--count", COUNT, "--steps", STEPS]
    for name, more in {"here": [], "there": ["--ray", "local", "--workers", 2]}.items():
        result = ditedge("quantize", *options, *more, "--out", tmp_path / name / "int8")
        assert result.exit_code == 0, result.output
    here, there = (read_quality(tmp_path / name / "int8" / "quality" / "quality.json") for name in ("here", "there"))
    assert (here.drift, here.pixels, here.steps) == (there.drift, there.pixels, there.steps)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed")
@pytest.mark.parametrize("command", ["compare", "quantize", "sample-set", "tune"])
def test_ray_that_is_missing_is_said_before_the_work(gray: Path, tmp_path: Path, command: str) -> None:
    out = [] if command == "compare" else ["--out", tmp_path / "out"]
    more = {"compare": ["--against", gray], "tune": ["--budget", "2passes"], "sample-set": ["--count", 4]}
    result = ditedge(command, "--engine", gray, *more.get(command, ()), *out, "--ray", "local")
    assert result.exit_code == 2 and "ray is not installed: pip install 'ditedge[ray]'" in result.output
    assert list(tmp_path.iterdir()) == []
