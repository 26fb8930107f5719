"""A model of prompts that makes pixels, with a BERT: rows against transformers, steps and pictures against diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ditedge.export import bundle_from_checkpoint
from ditedge.export.options import ExportOptions
from ditedge.runtime import open_bundle
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.loop.noise import GivenNoise
from ditedge.runtime.loop.session import Session
from ditedge.runtime.loop.tokenizing import Tokenizer
from ditedge.runtime.loop.verify import relative_error
from tests.export.pixel_pipelines import SIDE, save_pixel_pipeline
from tests.export.same_run import assert_same_run

PROMPTS = ["a dark ankle boot on the left of a handbag", "Red sneaker"]
STEPS, GUIDANCE = 20, 4.5  # of PixArt's pipelines, and of the bundle


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Bundle, list[str]]:
    folder, said = tmp_path_factory.mktemp("pixels"), []
    transformer, encoder = save_pixel_pipeline(folder / "pipeline")
    bundle_from_checkpoint(folder / "pipeline", folder / "bundle", ExportOptions(), note=said.append)
    return transformer, encoder, open_bundle(folder / "bundle"), said


def rows_of(encoder: Any, bundle: Bundle, text: str) -> torch.Tensor:
    """[1, n, Dh]: what transformers' own model makes of a prompt alone."""
    (ids,) = Tokenizer(bundle).prompt(text)[0].ids or ()  # one text encoder's
    with torch.no_grad():
        return encoder(input_ids=torch.tensor([ids])).last_hidden_state


def test_a_bundle_of_pixels(exported: tuple[Any, Any, Bundle, list[str]]) -> None:
    _, _, bundle, said = exported
    manifest = bundle.manifest
    assert manifest.text is not None and manifest.text.factor == 1 and manifest.vae is None
    assert {"decoder", "text", "context"} <= set(manifest.graphs) and "preview" not in manifest.graphs
    assert any("taken for a model of gray pictures (1 x 8 x 8)" in line for line in said)


@pytest.mark.parametrize("text", ["", *PROMPTS])
def test_the_text_encoder_is_transformers_own(exported: tuple[Any, Any, Bundle, list[str]], text: str) -> None:
    _, encoder, bundle, _ = exported
    prompt = Tokenizer(bundle).prompt(text)[0]
    with Session(bundle) as session:
        rows = session.encode(prompt)["hidden"]
    expected = rows_of(encoder, bundle, text)[0].numpy()
    assert rows.shape == expected.shape == (2 + len(text.split()), 16)  # the tokenizer's own cut is not in the bundle
    assert relative_error(rows, expected) < 1e-5


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' scheduler
@pytest.mark.parametrize("size", [(SIDE, SIDE), (2 * SIDE, SIDE)])
def test_every_step_and_the_pictures(exported: tuple[Any, Any, Bundle, list[str]], size: tuple[int, int]) -> None:
    transformer, encoder, bundle, _ = exported
    z = np.random.default_rng(5).standard_normal((2, 1, size[1], size[0])).astype(np.float32)
    noise = GivenNoise(z, np.zeros((STEPS, *z.shape), np.float32))
    expected = reference(transformer, [rows_of(encoder, bundle, text) for text in (*PROMPTS, "")], z)
    assert len(expected) == STEPS
    pictures = ((expected[-1].transpose(0, 2, 3, 1).astype(np.float64) + 1) / 2).clip(0, 1)
    images = assert_same_run(bundle, noise, expected, pictures, PROMPTS, size, channels=1)
    assert np.abs(images - np.round(255 * pictures)).max() <= 1  # of every pixel: no VAE is in between


@torch.no_grad()
def reference(transformer: Any, rows: list[torch.Tensor], z: np.ndarray) -> list[np.ndarray]:
    """diffusers' transformer and scheduler, one prompt at a time, so that nothing is padded; the last row is empty."""
    from diffusers import DPMSolverMultistepScheduler

    trajectories = []
    for i, start in enumerate(torch.from_numpy(z)):
        scheduler, x, steps = DPMSolverMultistepScheduler(), start[None], []
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            sizes = {"resolution": None, "aspect_ratio": None}
            own, empty = (transformer(x, part, t[None], added_cond_kwargs=sizes).sample for part in (rows[i], rows[-1]))
            x = scheduler.step(empty + GUIDANCE * (own - empty), t, x).prev_sample
            steps.append(x.numpy())
        trajectories.append(steps)
    return [np.concatenate(step) for step in zip(*trajectories, strict=True)]


def test_what_a_model_of_colours_makes_is_said(tmp_path: Path) -> None:
    save_pixel_pipeline(tmp_path / "pipeline", channels=3)
    with pytest.raises(RequestError, match="3 x 8 x 8 numbers, which may be pixels .* give --pixels"):
        bundle_from_checkpoint(tmp_path / "pipeline", tmp_path / "out", ExportOptions())
    with pytest.raises(RequestError, match="with --pixels: a model of pixels has no VAE"):
        bundle_from_checkpoint(tmp_path / "pipeline", tmp_path / "out", ExportOptions(pixels=True, vae=tmp_path))
    assert not (tmp_path / "out").exists()
