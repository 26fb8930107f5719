"""PixArt's distilled variants: the same network, another scheduler in its folder; and folders of older releases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from ditedge.runtime import open_bundle
from ditedge.runtime.loop.noise import GivenNoise
from tests.export.pixart_pipelines import export_pixart, small_pipeline
from tests.export.same_run import assert_same_run

PROMPTS = ["a red fox", "A dark ankle boot on the left of a handbag in the snow "]
BETAS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
# folder's name, scheduler, what its users give the pipeline, the bundle's program, random noises that are drawn
VARIANTS: dict[str, tuple[str, Any, dict[str, Any], str, int]] = {
    "LCM": ("pipeline", diffusers.LCMScheduler(**BETAS), {"num_inference_steps": 4, "guidance_scale": 0.0}, "lcm-4", 3),
    "DMD": (
        "Small-Alpha-DMD", diffusers.DDPMScheduler(**BETAS, clip_sample=False),
        {"num_inference_steps": 1, "timesteps": [400], "guidance_scale": 1}, "dmd-1", 0,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' scheduler
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variants_latents_at_every_step_and_its_pictures(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, scheduler, told, program, draws = VARIANTS[variant]
    pipeline = small_pipeline()
    pipeline.scheduler = scheduler
    steps, latent = told["num_inference_steps"], (2, 4, 12, 6)
    bundle = open_bundle(export_pixart(pipeline, tmp_path / name, tmp_path / "bundle"))
    assert (bundle.manifest.defaults.program, bundle.manifest.defaults.guidance) == (program, 1.0)
    random = np.random.default_rng(5)
    z, noise = (random.standard_normal(shape).astype(np.float32) for shape in (latent, (steps, *latent)))
    given = iter(noise)
    if draws:
        module = diffusers.schedulers.scheduling_lcm
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.from_numpy(next(given)))
    expected: list[np.ndarray] = []
    pictures = pipeline(
        prompt=PROMPTS,
        height=96,
        width=48,
        latents=torch.from_numpy(z),
        use_resolution_binning=False,
        clean_caption=False,
        output_type="np",
        callback=lambda step, t, x: expected.append(x.numpy().copy()),
        **told,
    ).images
    assert_same_run(bundle, GivenNoise(z, noise), expected, pictures, PROMPTS, (48, 96))
    assert len(expected) == steps and len(list(given)) == steps - draws


def test_folders_of_older_releases_and_settings_of_lcm_that_are_others(tmp_path: Path) -> None:
    """PixArt-alpha's own folders say Transformer2DModel; and an LCM of 100 steps of distillation is not `--sampler lcm`."""
    from ditedge.export.sources.families import family_of

    pipeline = small_pipeline()
    pipeline.scheduler = diffusers.LCMScheduler(**BETAS, original_inference_steps=100)
    pipeline.save_pretrained(tmp_path)
    config = tmp_path / "transformer" / "config.json"
    values = json.loads(config.read_text()) | {"_class_name": "Transformer2DModel", "num_embeds_ada_norm": 1000}
    config.write_text(json.dumps(values))
    family = family_of(tmp_path)
    assert family is not None
    checkpoint = family(tmp_path)
    assert checkpoint.architecture == "pixart" and checkpoint.process.sampling == {}
    assert any("settings that `run --sampler lcm` has not" in note for note in checkpoint.notes)
