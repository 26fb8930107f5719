"""Bundles that can start from a picture: of pixels, of latents, and of prompts, from the export to the pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cli import main
from ditedge.export import ExportOptions, bundle_from_checkpoint
from ditedge.runtime import Session, generate, open_bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.loop.noise import SeededNoise
from ditedge.runtime.loop.verify import relative_error
from ditedge.runtime.samplers.levels import levels_of_program
from tests.conftest import GOLDEN
from tests.export.networks.vaes import LATENT, from_diffusers, make_vae
from tests.export.pixart_pipelines import small_pipeline

GRAY = GOLDEN / "gray1_cfg" / "model.safetensors"


@pytest.fixture(scope="module")
def gray(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("begin") / "gray"
    bundle_from_checkpoint(GRAY, out, ExportOptions(heads=2, encoder=True))
    return out


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The bundle of a latent model, and its VAE."""
    folder = tmp_path_factory.mktemp("begin-latent")
    make_vae(folder / "vae")
    bundle_from_checkpoint(LATENT, folder / "b", ExportOptions(heads=2, vae=folder / "vae", encoder=True))
    return folder / "b", folder / "vae"


def picture(bundle: Path, seed: int = 0) -> np.ndarray:
    size = open_bundle(bundle).manifest.picture_size("decoder")
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


@torch.no_grad()
def test_latents_are_the_vaes_and_pixels_are_themselves(gray: Path, latent: tuple[Path, Path]) -> None:
    with Session(open_bundle(gray)) as session:
        shape = session.bundle.manifest.model.latent_shape
        found = session.encode_images(picture(gray)[None], shape)
        np.testing.assert_array_equal(session.images(found)[0], picture(gray))
    with Session(open_bundle(latent[0])) as session:
        pictures = np.stack([picture(latent[0], seed) for seed in (1, 2)])
        found = session.encode_images(pictures, session.bundle.manifest.model.latent_shape)
    vae, scaled = from_diffusers(latent[1]), torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
    expected = vae.encode(scaled).latent_dist.mode() * vae.config.scaling_factor
    assert relative_error(found, expected.numpy()) < 1e-5


def test_a_run_is_the_programs_steps_from_the_noised_picture(latent: tuple[Path, Path]) -> None:
    """The contract written out: init of z and noise, then the rows that are left; each image alone as in a batch."""
    bundle = open_bundle(latent[0])
    program, given = bundle.program(sampler="ddim", steps=10, strength=0.4), picture(latent[0])
    states: list[np.ndarray] = []
    with Session(bundle) as session:
        told: dict[str, Any] = {
            "program": program,
            "image": given,
            "guidance": 2.0,
            "output": "latents",
            "session": session,
        }
        found = generate(bundle, [1, 2, 0], [5, 6, 7], on_step=lambda e: states.append(e.latents.copy()), **told)
        alone = generate(bundle, [2], [6], **told)
        z = session.encode_images(given[None], bundle.manifest.model.latent_shape)
        noise = SeededNoise([5], z.shape[1:])
        whole = bundle.program(sampler="ddim", steps=10)
        start = program.init[0] * z + program.init[1] * noise.initial()
        run = session.start(whole, 1, 5, guidance=2.0)
        run.step, run.state = 6, start.astype(np.float32)[0][None]
        while not run.done:
            session.advance([run])
    assert program.steps == 4 == len(states)
    np.testing.assert_allclose(found[0], run.latent, rtol=0, atol=2e-6)
    np.testing.assert_allclose(found[1], alone[0], rtol=0, atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "heun"])
def test_what_is_kept_is_the_picture_and_noisy_as_the_next_step_expects(
    latent: tuple[Path, Path], sampler: str
) -> None:
    bundle = open_bundle(latent[0])
    program, given = bundle.program(sampler=sampler, steps=6, strength=0.7), picture(latent[0])
    mask = np.zeros(given.shape[:2], dtype=bool)
    mask[: len(mask) // 2] = True
    levels, seen = levels_of_program(program), []
    with Session(bundle) as session:
        known = session.encode_images(given[None], bundle.manifest.model.latent_shape)
        told: dict[str, Any] = {
            "program": program,
            "image": given,
            "guidance": 2.0,
            "output": "latents",
            "session": session,
        }
        found = generate(bundle, [1, 2], [5, 6], mask=mask, on_step=lambda e: seen.append(e.latents.copy()), **told)
        free = generate(bundle, [1, 2], [5, 6], **told)
    half, noise = known.shape[2] // 2, SeededNoise([5, 6], known.shape[1:]).initial()
    for i, latents in enumerate(seen):
        expected = levels[i + 1, 0] * known + levels[i + 1, 1] * noise
        np.testing.assert_allclose(latents[:, :, half:], expected[:, :, half:], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found[:, :, half:], np.broadcast_to(known, found.shape)[:, :, half:])
    assert np.abs(found[:, :, :half] - free[:, :, :half]).max() > 1e-4  # it sees what is kept beside it
    assert np.abs(found[0, :, :half] - found[1, :, :half]).max() > 1e-3


def test_everything_painted_over_is_an_image_to_image_run(gray: Path) -> None:
    bundle, given = open_bundle(gray), picture(gray)
    plain = generate(bundle, [1], [3], image=given)
    np.testing.assert_array_equal(generate(bundle, [1], [3], image=given, mask=np.ones(given.shape[:2], bool)), plain)
    kept = generate(bundle, [1], [3], image=given, mask=np.zeros(given.shape[:2], np.uint8))
    np.testing.assert_array_equal(kept[0], given)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"image": np.zeros((3, 3, 1), np.uint8)}, r"the image is uint8 \[3, 3, 1\]: give uint8"),
        ({"image": np.zeros((8, 8, 1), np.float32)}, "the image is float32"),
        ({"mask": np.zeros((3, 3), bool)}, r"the mask is bool \[3, 3\]"),
        ({"image": None}, "give the image, too"),
        ({"program": "ddim-50"}, "starts from noise alone"),
    ],
)
def test_pictures_that_do_not_fit(gray: Path, change: dict, complaint: str) -> None:
    bundle, given = open_bundle(gray), picture(gray)
    settings: dict[str, Any] = {"image": given, "mask": np.ones(given.shape[:2], bool)} | change
    if isinstance(settings.get("program"), str):
        settings["program"] = bundle.program(sampler="ddim", steps=5)
    with pytest.raises(RequestError, match=complaint):
        generate(bundle, [1], [3], **settings)
    with pytest.raises(RequestError, match="starts from a given latent"):
        generate(bundle, [1], [3], program=bundle.program(strength=0.5))


def ditedge(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert code == 0 or "Traceback" not in result.output
    return result.output


def test_run_from_a_picture_file_and_again(gray: Path, tmp_path: Path) -> None:
    """A photograph of another size and colours is scaled, cut and made grey; --like asks for the same files."""
    photo, mask, out, again = (tmp_path / name for name in ("photo.jpg", "mask.png", "out.png", "again.png"))
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 90, 3), dtype=np.uint8)).save(photo)
    half = np.zeros((40, 90), np.uint8)
    half[:, :45] = 255
    Image.fromarray(half).save(mask)
    common = ("run", "--engine", gray)
    said = json.loads(
        ditedge(*common, "--class", 1, "--image", photo, "--mask", mask, "--steps", 5, "-o", out, "--json")
    )
    assert said["program"].endswith("-5-strength-0.8") and said["steps"] == 4
    ditedge(*common, "--like", out, "--image", photo, "--mask", mask, "-o", again)
    assert out.read_bytes() == again.read_bytes()
    other = tmp_path / "other.png"
    Image.new("L", (90, 40)).save(other)
    for arguments, complaint in (
        (("--like", out), "was made with an image (sha256"),
        (("--like", out, "--image", other, "--mask", mask), "was made with another image"),
        (("--mask", mask), "give --image, too"),
        (("--strength", 0.5), "give --image, too"),
        (("--image", photo, "--mask", out), "a mask has its picture's size"),
        (("--image", gray / "manifest.json"), "not a readable picture"),
        (("--image", photo, "--strength", 0.01, "--steps", 5), "leaves none"),
        (("--image", photo, "--program", "ddim-10"), "starts from noise: leave --image out"),
    ):
        assert complaint in " ".join(ditedge(*common, *arguments, "-o", tmp_path / "x.png", code=2).split()), arguments


def test_without_an_encoder_it_says_how_to_get_one(golden_bundle, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (16, 16)).save(photo)
    said = ditedge("run", "--engine", golden_bundle("gray1_cfg"), "--image", photo, code=2)
    assert "has no encoder, so it cannot start from a picture: export it again with --encoder" in " ".join(said.split())
    said = ditedge("export", "--ckpt", LATENT, "--heads", 2, "--latents", "--encoder", "--out", tmp_path / "b", code=2)
    assert "--encoder turns pictures into latents by a VAE: give --vae, too" in " ".join(said.split())


@pytest.mark.slow  # exports all graphs of a pipeline
def test_a_model_of_prompts_takes_the_pictures_own_size(tmp_path: Path) -> None:
    """Of a folder of diffusers: the encoder reads any size, and the run is as large as the picture, within limits."""
    small_pipeline().save_pretrained(tmp_path / "pipeline")
    bundle_from_checkpoint(tmp_path / "pipeline", tmp_path / "b", ExportOptions(encoder=True))
    bundle = open_bundle(tmp_path / "b")
    given = np.random.default_rng(4).integers(0, 256, (48, 96, 3), dtype=np.uint8)
    program = bundle.program(steps=4, strength=0.5)
    images = generate(bundle, seeds=[1], prompts=["a red fox"], size=(96, 48), image=given, program=program)
    assert images.shape == (1, 48, 96, 3)
    Image.fromarray(given).save(tmp_path / "photo.png")
    out = tmp_path / "out.png"
    ditedge("run", "--engine", tmp_path / "b", "--prompt", "a red fox", "--seed", 1, "--steps", 4, "--strength", 0.5,
            "--image", tmp_path / "photo.png", "-o", out)  # fmt: skip
    np.testing.assert_array_equal(np.asarray(Image.open(out)), images[0])
