"""Pictures that overflow: said, by image, class, seed and step; and the others of the batch come out as ever."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import load_file

from ditedge.cli import main
from ditedge.runtime import NotFiniteError, Session, generate, open_bundle
from ditedge.runtime.errors import BrokenImage, RequestError
from ditedge.runtime.loop.noise import GivenNoise
from tests.conftest import overheat

HOT = 5
LABELS, SEEDS = [HOT, 0, 3, HOT], [7, 8, 9, 10]


@pytest.fixture
def hot(gray_bundle: Path) -> Path:
    return overheat(gray_bundle, HOT)


class FromStep:
    """The step engine of a bundle, which breaks the second sample at one step."""

    def __init__(self, engine, step: int) -> None:
        self.engine, self.inputs, self.step, self.calls = engine, engine.inputs, step, 0

    def run(self, inputs, outputs, cancel=None) -> None:
        self.calls += 1
        self.engine.run(inputs, outputs, cancel)
        if self.calls == self.step:
            outputs["next_state"][1, 0, 0, 2, 3] = np.inf

    def close(self) -> None:
        self.engine.close()


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_good_images_come_with_the_error(golden_bundle, hot: Path, batch: int, guidance: float) -> None:
    bundle, options = open_bundle(hot), {"guidance": guidance, "batch": batch}
    expected = generate(open_bundle(golden_bundle("gray1_cfg")), LABELS, SEEDS, **options)
    with pytest.raises(NotFiniteError, match=rf"2 of 4 .* image 0 \(class {HOT}, seed 7\), image 3") as caught:
        generate(bundle, LABELS, SEEDS, **options)
    assert caught.value.images == (BrokenImage(0, HOT, 7, None), BrokenImage(3, HOT, 10, None))
    assert not caught.value.results[[0, 3]].any()
    np.testing.assert_array_equal(caught.value.results[[1, 2]], expected[[1, 2]])
    with pytest.raises(NotFiniteError) as caught:
        generate(bundle, LABELS, SEEDS, output="latents", **options)
    finite = np.isfinite(caught.value.results).reshape(4, -1)
    assert finite[[1, 2]].all() and not finite[[0, 3]].any(axis=1).all()


def test_the_step_where_it_begins_is_named_when_asked(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    for asked, step in ((False, None), (True, 3)):
        with Session(bundle) as session:
            session.loop.engines["step"] = FromStep(session.engine("step"), 3)
            with pytest.raises(NotFiniteError) as caught:
                generate(
                    bundle, [1, 2, 3], [0, 1, 2], program=bundle.program(steps=5), session=session, check_finite=asked
                )
        assert caught.value.images == (BrokenImage(1, 2, 1, step),)
        assert ("from step 3 on" in str(caught.value)) == asked
        assert ("--check-finite" in str(caught.value)) != asked


def test_given_noise_has_no_seed(hot: Path) -> None:
    bundle = open_bundle(hot)
    program = bundle.program(steps=3)
    noise = GivenNoise(np.zeros((1, 1, 8, 8), np.float32), np.zeros((3, 1, 1, 8, 8), np.float32))
    with pytest.raises(NotFiniteError, match=rf"image 0 \(class {HOT}\)") as caught:
        generate(bundle, [HOT], [0], program=program, noise=noise)
    assert caught.value.images[0].seed is None


def run(bundle: Path, *options: object):
    arguments = ["run", "--engine", bundle, "--steps", 3, "--json", *options]
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def test_run_writes_the_good_ones_and_ends_with_1(hot: Path, tmp_path: Path) -> None:
    classes = [x for label in LABELS for x in ("--class", label)]
    out, latents = tmp_path / "out", tmp_path / "l.safetensors"
    result = run(hot, *classes, "--batch", 3, "-o", out, "--save-latents", latents, "--check-finite")
    assert result.exit_code == 1
    assert f"Error: 2 of 4 pictures overflowed: image 0 (class {HOT}, seed 0, from step 1 on)" in result.stderr
    summary = json.loads(result.stdout)
    assert [Path(path).name for path in summary["written"]] == [
        "l.safetensors", "0001-class0-seed1.png", "0002-class3-seed2.png"]  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == ["0001-class0-seed1.png", "0002-class3-seed2.png"]
    assert summary["not_finite"][1] == {"index": 3, "label": HOT, "seed": 3, "step": 1}
    assert np.isfinite(load_file(latents)["latents"]).reshape(4, -1).all(axis=1).tolist() == [False, True, True, False]


def test_a_grid_is_written_with_black_cells_and_one_picture_not_at_all(hot: Path, tmp_path: Path) -> None:
    result = run(hot, "--class", HOT, "--class", 0, "-o", tmp_path / "grid.png", "--preview-every", 1)
    assert result.exit_code == 1
    with Image.open(tmp_path / "grid.png") as image:
        cells = np.asarray(image)
    assert not cells[:8, :8].any() and cells[:8, -8:].any()
    result = run(hot, "--class", HOT, "-o", tmp_path / "one.png")
    assert result.exit_code == 1 and json.loads(result.stdout)["written"] == []
    assert not (tmp_path / "one.png").exists()


def test_other_commands_see_it_too(golden_bundle, gray_bundle: Path, tmp_path: Path) -> None:
    """verify fails (its trajectories are of classes 0 and 9), compare says how many images were not finite."""
    hot, cool = str(overheat(gray_bundle, 9)), str(golden_bundle("gray1_cfg"))
    result = CliRunner().invoke(main, ["verify", "--engine", hot])
    assert result.exit_code == 1 and "FAILED" in result.output
    options = ["--count", "10", "--steps", "3", "--speed-rounds", "0", "--max-drift", "0.5"]
    result = CliRunner().invoke(main, ["compare", "--engine", cool, "--against", hot, *options])
    assert result.exit_code == 1 and "FAILED" in result.stderr


@pytest.mark.parametrize("guidance", [1e300, 3.1e38, -1e39, float("nan"), float("inf")])
def test_guidance_beyond_float32_is_refused(golden_bundle, guidance: float) -> None:
    with pytest.raises(RequestError, match="is not a number up to 3e38"):
        generate(open_bundle(golden_bundle("gray1_cfg")), [1], [0], guidance=guidance)
