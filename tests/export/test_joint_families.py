"""Stable Diffusion 3 and FLUX.1 against diffusers: networks, and whole pipelines at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from ditedge.export.networks.flux import Flux, FluxConfig
from ditedge.export.networks.sd3 import SD3, SD3Config
from ditedge.export.sources.sd3_folder import _with_table
from ditedge.runtime import open_bundle
from ditedge.runtime.loop.generate import generate
from ditedge.runtime.loop.noise import GivenNoise
from ditedge.runtime.loop.verify import relative_error
from tests.export.joint_pipelines import (
    CHANNELS,
    FLUX_POOLED,
    HEAD,
    HEADS,
    SD3_POOLED,
    SIDE,
    T5_WIDTH,
    export_joint,
    flux_pipeline,
    flux_transformer,
    sd3_pipeline,
    sd3_transformer,
)

PROMPTS = ["a red fox", "A dark ankle boot on the left of a handbag in the snow "]


class Family(NamedTuple):
    pipeline: Any
    steps: int
    packed: bool  # the pipeline's latents are tokens
    told: dict[str, Any]  # of its call, what is not its default


FAMILIES = {
    "sd3.5": lambda: Family(sd3_pipeline(dual=True), 28, False, {}),
    "sd3": lambda: Family(sd3_pipeline(dual=False, t5=False), 28, False, {}),
    "flux-dev": lambda: Family(flux_pipeline(told=True), 28, True, {}),
    "flux-schnell": lambda: Family(
        flux_pipeline(told=False), 4, True, {"num_inference_steps": 4, "max_sequence_length": 256}
    ),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("sd3", "flux-schnell")]


@pytest.fixture(scope="module", params=["sd3.5", "flux-dev", *SLOW])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Path]:
    folder, family = tmp_path_factory.mktemp(request.param), FAMILIES[request.param]()
    return family, export_joint(family.pipeline, folder / "pipeline", folder / "bundle")


@pytest.mark.parametrize("dual", [False, True])
@torch.no_grad()
def test_sd3_is_diffusers_own(dual: bool) -> None:
    reference = sd3_transformer(dual)
    config = SD3Config(
        SIDE, 2, CHANNELS, CHANNELS, HEADS, HEAD, 2, T5_WIDTH, sum(SD3_POOLED), 12, (0,) if dual else (), dual,
        clip_channels=(8, 12), pooled_of_clip=SD3_POOLED, clip_tokens=7, t5_tokens=9,
    )  # fmt: skip
    model = SD3(config)
    model.load_state_dict(_with_table(dict(reference.state_dict()), config))
    random = torch.Generator().manual_seed(1)
    x, first, second, third, *pooled = (
        torch.randn(3, *shape, generator=random)
        for shape in ((CHANNELS, 10, 14), (7, 8), (7, 12), (9, T5_WIDTH), *((width,) for width in SD3_POOLED))
    )
    timestep = torch.tensor([1000.0, 500.0, 3.0])
    context, vector = model.context(first, pooled[0], second, pooled[1], third)
    clip = torch.nn.functional.pad(torch.cat([first, second], 2), (0, T5_WIDTH - 20))
    expected = reference(x, torch.cat([clip, third], 1), torch.cat(pooled, 1), timestep).sample
    position = model.position(torch.arange(5.0), torch.arange(7.0))
    found = model.trunk(x, model.conditioner(timestep, vector), context, torch.arange(3), position)
    assert relative_error(found.numpy(), expected.numpy()) < 1e-6  # measured: 1.1e-7


@pytest.mark.parametrize("told", [False, True])
@torch.no_grad()
def test_flux_is_diffusers_own(told: bool) -> None:
    reference = flux_transformer(told)
    model = Flux(FluxConfig(SIDE, CHANNELS, CHANNELS, HEADS, HEAD, 1, 2, T5_WIDTH, FLUX_POOLED, (4, 6, 6), told, 9))
    model.load_state_dict(reference.state_dict())
    random = torch.Generator().manual_seed(1)
    x, rows, pooled = (
        torch.randn(3, *shape, generator=random) for shape in ((CHANNELS, 10, 14), (9, T5_WIDTH), (FLUX_POOLED,))
    )
    timestep, guidance = torch.tensor([1000.0, 500.0, 3.0]), torch.tensor([3.5, 1.0, 7.0])
    pipeline = _flux_class()
    ids = pipeline._prepare_latent_image_ids(3, 5, 7, "cpu", torch.float32)
    tokens = pipeline._pack_latents(x, 3, CHANNELS, 10, 14)
    expected = reference(
        tokens, rows, pooled, timestep / 1000, ids, torch.zeros(9, 3), guidance if told else None
    ).sample
    context, vector = model.context(pooled, rows)
    modulation = model.conditioner(timestep, vector, guidance if told else None)
    position = model.position(torch.arange(5.0), torch.arange(7.0))
    found = model.trunk(x, modulation, context, torch.arange(3), position)
    assert relative_error(found.numpy(), pipeline._unpack_latents(expected, 80, 112, 8).numpy()) < 1e-6


@pytest.mark.parametrize("size", [(64, 64), (96, 48)])
def test_a_pipelines_latents_at_every_step_and_its_pictures(
    exported: tuple[Family, Path], size: tuple[int, int]
) -> None:
    family, folder = exported
    (width, height), bundle = size, open_bundle(folder)
    latent = (2, CHANNELS, height // 8, width // 8)
    z = np.random.default_rng(5).standard_normal(latent).astype(np.float32)
    expected, found = [], []

    def on_step_end(pipeline: Any, step: int, t: Any, told: dict[str, Any]) -> dict[str, Any]:
        x = told["latents"]
        expected.append((_flux_class()._unpack_latents(x, height, width, 8) if family.packed else x).numpy().copy())
        return told

    given = torch.from_numpy(z)
    pictures = family.pipeline(
        prompt=PROMPTS,
        height=height,
        width=width,
        latents=_flux_class()._pack_latents(given, *latent) if family.packed else given,
        output_type="np",
        callback_on_step_end=on_step_end,
        **family.told,
    ).images
    images = generate(
        bundle,
        seeds=[0, 1],
        prompts=PROMPTS,
        size=size,
        noise=GivenNoise(z, np.zeros((family.steps, *latent), np.float32)),
        on_step=lambda event: found.append(event.latents.copy()),
    )
    assert len(found) == len(expected) == family.steps
    worst = max(relative_error(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert worst < 1e-4
    difference = np.abs(images.astype(int) - np.round(255 * pictures).astype(int))
    assert images.shape == (2, height, width, 3) and np.mean(difference <= 1) >= 0.999


def _flux_class() -> Any:
    from diffusers import FluxPipeline

    return FluxPipeline
