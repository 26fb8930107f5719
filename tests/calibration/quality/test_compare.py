"""Two bundles compared: against numpy's own sums, with gates, and what cannot be compared is said in one sentence."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ditedge.calibration import CompareRequest, Gate, check_gate, compare_bundles, read_quality
from ditedge.calibration.quality.distances import accuracy, frechet_distance
from ditedge.calibration.quality.metrics import speed as speed_metric
from ditedge.calibration.quality.metrics.features import percent_more
from ditedge.cli import main
from ditedge.runtime import generate, open_bundle
from ditedge.runtime.bench.turns import Laps, interleave
from ditedge.runtime.errors import EngineError, RequestError
from tests.calibration.quality.feature_models import feature_model
from tests.calibration.variants import edit_weights, int8, variant

COUNT = 11  # not a multiple of the batch
QUICK = {"count": COUNT, "batch": 4, "steps": 4, "speed_rounds": 0}


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)


def test_a_bundle_against_itself(gray: Path) -> None:
    comparison = compare_bundles(gray, gray, CompareRequest(**QUICK))
    q = comparison.quality
    assert q.drift.relative == q.drift.worst == 0 and q.drift.psnr is None and q.drift.broken == 0
    assert q.pixels is not None and q.pixels.psnr is None and q.pixels.mean_difference == 0
    assert [step.relative for step in q.steps] == [0.0] * 4
    assert q.drift_between_seeds > 0.1  # other seeds are other pictures
    assert comparison.images_a is not None and np.array_equal(comparison.images_a, comparison.images_b)


def test_drift_is_what_numpy_computes_from_two_runs(gray: Path, coarse: Path) -> None:
    labels = [i % 10 for i in range(COUNT)]
    paths, images = [], []
    for folder in (gray, coarse):
        bundle, steps = open_bundle(folder), {}
        program = bundle.program(steps=4)

        def keep(progress, steps=steps) -> None:
            steps.setdefault((progress.done - 1) % 4, []).append(progress.latents.copy())

        request = {"program": program, "batch": COUNT, "on_step": keep}
        images.append(generate(bundle, labels, range(COUNT), **request))
        paths.append(np.array([np.concatenate(steps[i]) for i in range(4)], dtype=np.float64))
    a, b = paths
    q = compare_bundles(gray, coarse, CompareRequest(**QUICK)).quality
    each = np.sqrt(((b - a) ** 2).sum((2, 3, 4)) / (a**2).sum((2, 3, 4)))
    # 1e-4: the batches differ (4 and 11), so float32 sums may be ordered otherwise
    expected = [np.linalg.norm(b[i] - a[i]) / np.linalg.norm(a[i]) for i in range(4)]
    assert [step.relative for step in q.steps] == pytest.approx(expected, rel=1e-4)
    assert [step.worst for step in q.steps] == pytest.approx(each.max(1).tolist(), rel=1e-4)
    assert q.drift.relative == pytest.approx(expected[-1], rel=1e-4) and expected[-1] > 1e-3
    assert q.drift.median == pytest.approx(np.median(each[-1]), rel=1e-4)
    mse = ((b[-1] - a[-1]) ** 2).mean()
    assert q.drift.psnr == pytest.approx(10 * np.log10((a[-1].max() - a[-1].min()) ** 2 / mse), rel=1e-4)
    pixel_mse = ((np.float64(images[0]) - np.float64(images[1])) ** 2).mean()
    assert q.pixels is not None
    assert q.pixels.psnr == pytest.approx(10 * np.log10(255**2 / pixel_mse), abs=0.1)  # a rounding may flip
    assert [step.timestep for step in q.steps] == open_bundle(gray).program(steps=4).timestep.tolist()


def test_seeds_and_batches(gray: Path, coarse: Path) -> None:
    """Another seed is another sample; another batch size is not."""
    one, other, batched = (
        compare_bundles(gray, coarse, CompareRequest(**(QUICK | change))).quality.drift.relative
        for change in ({}, {"seed": 1000}, {"batch": 11})
    )
    assert one == pytest.approx(batched, rel=1e-4) and one != pytest.approx(other, rel=1e-3)


def test_features_against_a_reference(gray: Path, coarse: Path, features: Path, reference, tmp_path: Path) -> None:
    np.savez(tmp_path / "real.npz", images=reference)
    request = CompareRequest(**QUICK, features=features, reference=tmp_path / "real.npz")
    comparison = compare_bundles(gray, coarse, request)
    seen = comparison.quality.features
    assert seen is not None and seen.reference_count == 50 and seen.dimensions == 4

    from ditedge.calibration import image_features

    bundle, labels = open_bundle(gray), np.arange(COUNT) % 10
    real = image_features(features, reference)[1]
    for scores, seeds in ((seen.a, range(COUNT)), (seen.a_other_seeds, range(COUNT, 2 * COUNT))):
        images = generate(bundle, labels.tolist(), seeds, program=bundle.program(steps=4), batch=4)
        logits, mine = image_features(features, images)
        assert scores.accuracy == accuracy(logits, labels)
        assert scores.frechet_distance == pytest.approx(frechet_distance(mine, real), rel=1e-6)
    assert seen.b.frechet_distance != seen.a.frechet_distance
    assert seen.frechet_between > 0 and seen.kernel_between > 0 and seen.kernel_between_seeds > 0


def test_a_folder_of_pictures_is_the_same_reference(gray: Path, features: Path, reference, tmp_path: Path) -> None:
    np.savez(tmp_path / "real.npz", reference[..., 0])  # arr_0, grey without a channel axis
    (tmp_path / "real").mkdir()
    for i, image in enumerate(reference):
        Image.fromarray(image[..., 0]).save(tmp_path / "real" / f"{i:02d}.png")
    results = [
        compare_bundles(gray, gray, CompareRequest(**QUICK, features=features, reference=tmp_path / name)).quality
        for name in ("real", "real.npz")
    ]
    first, second = (quality.features.a.frechet_distance for quality in results if quality.features)
    assert first == pytest.approx(second, rel=1e-9)


def test_speed_is_measured_in_other_processes(gray: Path) -> None:
    """A against itself: the ratio is near 1 on an idle machine; this one is shared, so only within 4."""
    speed = compare_bundles(gray, gray, CompareRequest(**(QUICK | {"speed_rounds": 2}))).quality.speed
    assert speed is not None and 0.25 < speed.ratio < 4 and speed.rounds == 2 and speed.evaluations == 2
    assert 0 < speed.a.min_ms <= speed.a.median_ms <= speed.a.max_ms
    assert 20e6 < speed.a.peak_bytes < 2e9  # Python, numpy and ONNX Runtime are tens of megabytes


def test_evaluations_of_the_step_are_those_that_its_process_counted(
    gray: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is told its guidance makes one an image, whatever the guidance is."""
    laps = Laps({"step": [[0.1]]}, 1, 0.1, {}, {"evaluations": 3})
    monkeypatch.setattr(speed_metric, "interleave", lambda *_: [laps, laps])
    quality = compare_bundles(gray, gray, CompareRequest(**(QUICK | {"speed_rounds": 1, "speed_batch": 3}))).quality
    assert quality.speed is not None and (quality.speed.batch, quality.speed.evaluations) == (3, 3)


def test_a_contender_that_dies_is_said(gray: Path) -> None:
    import sys

    with pytest.raises(EngineError, match="the process that measures the speed ended: .*boom"):
        interleave([[sys.executable, "-c", "raise SystemExit('boom')"]], 1)


def test_numbers_that_are_not_finite_are_counted_and_fail(gray: Path, tmp_path: Path) -> None:
    broken = variant(gray, tmp_path / "broken", edit_weights(lambda w: w * np.float32(np.nan)))
    comparison = compare_bundles(gray, broken, CompareRequest(**QUICK))
    q = comparison.quality
    assert q.drift.broken == COUNT and q.drift.relative is None and q.steps[-1].relative is None
    checked, failed = comparison.with_gate(Gate(max_drift=10))
    assert [result.name for result in failed] == ["finite images", "drift"] and checked.quality.gates
    json.loads(q.model_dump_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    with pytest.raises(RequestError, match="reference bundle .* not finite"):
        compare_bundles(broken, gray, CompareRequest(**QUICK))


def test_gates_pass_and_fail(gray: Path, coarse: Path, features: Path, reference, tmp_path: Path) -> None:
    np.savez(tmp_path / "real.npz", images=reference)
    request = CompareRequest(**QUICK, features=features, reference=tmp_path / "real.npz")
    q = compare_bundles(gray, coarse, request).quality
    assert q.drift.relative is not None and q.pixels is not None and q.features is not None
    loss = 100 * (q.features.a.accuracy - q.features.b.accuracy)
    increase = 100 * (q.features.b.frechet_distance / q.features.a.frechet_distance - 1)
    assert q.pixels.psnr is not None
    exact = Gate(q.drift.relative, q.pixels.psnr, loss, increase, max_size=100)
    assert all(result.passed for result in check_gate(q, exact)) and len(check_gate(q, exact)) == 6
    tight = Gate(q.drift.relative - 1e-6, q.pixels.psnr + 1e-6, loss - 0.1, increase - 1e-6, max_size=99)
    results = check_gate(q, tight)
    assert [result.passed for result in results] == [True] + [False] * 5  # no image is broken
    assert all("is allowed" in result.sentence for result in results)
    for gate, match in (
        (Gate(max_accuracy_loss=1), "--features"),
        (Gate(max_frechet_increase=1), "--reference"),
        (Gate(min_speedup=1), "speed"),
    ):
        with pytest.raises(RequestError, match=match):
            check_gate(q.model_copy(update={"features": None}), gate)


def test_equal_pictures_pass_any_psnr(gray: Path) -> None:
    q = compare_bundles(gray, gray, CompareRequest(**QUICK)).quality
    assert all(result.passed for result in check_gate(q, Gate(max_drift=0, min_psnr=99)))


def test_the_command(gray: Path, tmp_path: Path) -> None:
    small = variant(gray, tmp_path / "int8", int8)
    arguments = ["compare", "--engine", gray, "--against", small, "--count", 6, "--steps", 3, "--speed-rounds", 0]
    out = tmp_path / "report"
    run = CliRunner().invoke
    result = run(main, [*map(str, arguments), "-o", str(out), "--max-drift", "0.9"])
    assert result.exit_code == 0, result.output
    assert f"wrote {out / 'report.html'}" in result.output and "drift of latents" in result.output
    quality = read_quality(out / "quality.json")
    assert quality.drift.relative and quality.gates[1].passed and quality.b.name == "int8"
    result = run(main, [*map(str, arguments), "--max-drift", "1e-9"])
    assert result.exit_code == 1 and re.search(r"FAILED: relative drift .* at most 1e-09", result.output)
    result = run(main, [*map(str, arguments), "--max-accuracy-loss", "1"])
    assert result.exit_code == 2 and "--features" in result.output and "Traceback" not in result.output
    result = run(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["settings"]["count"] == 6


def test_bundles_of_other_shapes(gray: Path, golden_bundle) -> None:
    with pytest.raises(RequestError, match="cannot be compared: latent channels 1 against 4"):
        compare_bundles(gray, golden_bundle("latent4_learned_sigma"), CompareRequest(**QUICK))


def test_bundles_of_other_classes(gray: Path, tmp_path: Path) -> None:
    other = variant(gray, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["model"]["num_classes"] += 1
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RequestError, match="cannot be compared: classes 10 against 11"):
        compare_bundles(gray, other, CompareRequest(**QUICK))


def test_files_that_do_not_fit(gray: Path, features: Path, reference, tmp_path: Path) -> None:
    def refused(match: str, **change) -> None:
        with pytest.raises(RequestError, match=match):
            compare_bundles(gray, gray, CompareRequest(**(QUICK | change)))

    model = tmp_path / "m.onnx"
    refused("missing.onnx does not exist", features=tmp_path / "missing.onnx")
    model.write_bytes(b"not a model")
    refused("not a readable feature extractor", features=model)
    refused("needs 'logits' and 'features'", features=feature_model(model, outputs=("logits", "pool")))
    good = ("logits", "features")
    refused("needs one, images", features=feature_model(model, inputs=2, outputs=good))
    refused(r"takes images \[C, H, W\] \[1, 4, 4\]", features=feature_model(model, size=4, outputs=good))
    refused(r"has logits \[1, 3\], the bundle has 10 classes", features=feature_model(model, classes=3, outputs=good))
    refused("needs a feature extractor", reference=tmp_path)
    refused("0 reference picture", features=features, reference=tmp_path)
    refused("neither a folder nor a readable .npz", features=features, reference=model)
    np.savez(tmp_path / "a.npz", pictures=reference)
    refused("has arrays pictures, needs 'images'", features=features, reference=tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", images=reference[:, :4])
    refused("needs uint8", features=features, reference=tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", images=np.array([{}], dtype=object))  # pickled: never loaded
    refused("neither a folder nor a readable .npz", features=features, reference=tmp_path / "c.npz")
    (tmp_path / "folder").mkdir()
    for name in ("1.png", "2.png"):
        Image.new("L", (9, 8)).save(tmp_path / "folder" / name)
    refused(r"1.png: \[8, 9\] pixels", features=features, reference=tmp_path / "folder")
    (tmp_path / "folder" / "1.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    refused("1.png: not a readable picture .PNG, JPEG, WEBP, BMP", features=features, reference=tmp_path / "folder")
    np.save(tmp_path / "d.npy", reference[:, :4])
    refused("the array is uint8", features=features, reference=tmp_path / "d.npy")
    with zipfile.ZipFile(tmp_path / "e.npz", "w") as file:
        file.writestr("images", b"no header")
    refused(
        r"readable .npz or .npy of pictures .'images' is not an array", features=features, reference=tmp_path / "e.npz"
    )
    (tmp_path / "f.npy").write_bytes(b"\x93NUMPY\x01\0\x12\0{'descr': '|u1', (\n")
    refused("neither a folder nor a readable .npz or .npy", features=features, reference=tmp_path / "f.npy")
    refused("count 0", count=0)
    refused("count 1", count=1, features=features)


def test_an_increase_from_nothing_is_not_passed_over() -> None:
    assert percent_more(2.0, 3.0) == pytest.approx(50) and percent_more(0.0, 0.0) == 0
    assert percent_more(0.0, 1.0) is None  # which fails the gate
