"""Pictures from plans, on the CPU: decoding, the commands, and images that overflow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ditedge.runtime import Session, open_bundle
from ditedge.runtime.bundle import manifest
from ditedge.runtime.errors import NotFiniteError
from tests.conftest import overheat
from tests.doubles.gpu_double import DoubleGpu
from tests.doubles.plans import write_plans
from tests.runtime.loop.on_plans import latents, plans, same


@pytest.mark.parametrize("case", ["gray1_cfg", "pixel3_no_null_class"])
def test_images_equal_onnx_runtimes(plan_bundle, gpu: DoubleGpu, monkeypatch, case: str) -> None:
    bundle = plan_bundle(case)
    shape = (5, *bundle.manifest.model.latent_shape)
    some = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    with Session(bundle) as ort, plans(bundle) as device:
        expected = ort.images(some)
        assert np.array_equal(device.images(some), expected)
        monkeypatch.setattr(manifest, "DECODE_PIXELS", 2 * shape[2] * shape[3])  # pictures in twos, then one
        assert np.array_equal(device.images(some), expected) and gpu.log.count("decoder") == 1 + 3
        assert np.array_equal(device.images(np.concatenate([some] * 2)), np.concatenate([expected] * 2))


def test_decoding_inside_a_callback_disturbs_nothing(plan_bundle, gpu: DoubleGpu) -> None:
    """Previews by the decoder: it shares scratch memory with the steps that are enqueued already."""
    bundle = plan_bundle("gray1_cfg")
    program = bundle.program(sampler="ddpm", steps=6)
    with Session(bundle) as ort, plans(bundle) as device:
        pictures = []
        watched = latents(
            bundle, device, program, on_step=lambda p: pictures.append((p.latents.copy(), device.images(p.latents)))
        )
        same(watched, latents(bundle, ort, program))
        for shown, picture in pictures:
            assert np.array_equal(picture, ort.images(shown))


def test_previews_by_a_plan(plan_bundle, gpu: DoubleGpu) -> None:
    bundle = plan_bundle("latent4_learned_sigma")
    some = np.random.default_rng(0).standard_normal((5, 4, 8, 8)).astype(np.float32)
    with Session(bundle) as ort, plans(bundle) as device:
        assert np.array_equal(device.preview(some), ort.preview(some)) and gpu.log.count("preview") == 1


def test_bundles_without_decoder(plan_bundle, gpu: DoubleGpu) -> None:
    from ditedge.runtime.errors import RequestError

    bundle = plan_bundle("latent4_learned_sigma")
    with plans(bundle) as device:
        latents(bundle, device, bundle.program(steps=2), labels=[1], seeds=[1])
        with pytest.raises(RequestError, match="no decoder"):
            device.images(np.zeros((1, 4, 8, 8), dtype=np.float32))


def test_run_and_verify_take_a_plan(plan_bundle, gpu: DoubleGpu, tmp_path: Path) -> None:
    """The command line: the same picture and previews as from the bundle's graphs, and every replay passed."""
    from click.testing import CliRunner
    from PIL import Image

    from ditedge.cli import main

    bundle = plan_bundle("gray1_cfg")
    plan, runner = bundle.folder / "engines" / "double" / "dit.plan", CliRunner()
    for name, engine in (("plan", plan), ("onnx", bundle.folder)):
        result = runner.invoke(
            main, ["run", "--engine", str(engine), "--count", "3", "--batch", "2", "--steps", "6", "--preview-every", "3", "-o", str(tmp_path / f"{name}.png")]
        )  # fmt: skip
        assert result.exit_code == 0, result.output
    for suffix in ("png", "preview-0003.png", "preview-0006.png"):
        with Image.open(tmp_path / f"plan.{suffix}") as actual, Image.open(tmp_path / f"onnx.{suffix}") as expected:
            assert np.abs(np.asarray(actual).astype(int) - np.asarray(expected)).max() <= 1
    result = runner.invoke(main, ["verify", "--engine", str(plan)])
    assert result.exit_code == 0 and "passed" in result.output, result.output
    assert gpu.log.count("decoder") == 6 and not gpu.live  # two batches: two previews and the pictures of each


@pytest.mark.parametrize(("watched", "step"), [(True, 1), (False, None)])
def test_an_image_that_overflows_is_named_and_the_others_come_with_it(
    plan_bundle, gray_bundle: Path, gpu: DoubleGpu, watched: bool, step: int | None
) -> None:
    hot = overheat(gray_bundle, 3)
    write_plans(hot)
    healthy = plan_bundle("gray1_cfg")
    with plans(healthy) as session:
        expected = latents(healthy, session, healthy.program())
    bundle = open_bundle(hot)
    with plans(bundle) as session, pytest.raises(NotFiniteError) as caught:
        latents(bundle, session, bundle.program(), check_finite=watched)
    assert [(image.index, image.label, image.step) for image in caught.value.images] == [(0, 3, step), (2, 3, step)]
    same(caught.value.results[[1, 3, 4]], expected[[1, 3, 4]])
