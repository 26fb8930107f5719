"""Sana and SANA-Sprint against diffusers: whole pipelines at every step, with their own scheduler and guidance."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from ditedge.runtime import open_bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.loop.generate import generate
from ditedge.runtime.loop.noise import GivenNoise
from tests.export.same_run import assert_same_run
from tests.export.sana_pipelines import export_sana, small_pipeline

PROMPTS = ["a red fox", " A Fox in the snow, and shapes of a sunny street "]
STEPS = {"sana": 20, "sprint": 2}  # of the pipelines
# What SANA-Sprint's latents are divided by for its network: sigma_data times cos t + sin t of angles 1.3 and 0.
SEEN = [0.5 * (math.cos(angle) + math.sin(angle)) for angle in (1.3, 0.0)]
SIZES = [(32, 32), (64, 32)]


@pytest.fixture(scope="module", params=["sana", pytest.param("sprint", marks=pytest.mark.slow)])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Path]:
    folder = tmp_path_factory.mktemp("sana")
    pipeline = small_pipeline(sprint=request.param == "sprint")
    return request.param, pipeline, export_sana(pipeline, folder / "pipeline", folder / "bundle")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' scheduler
@pytest.mark.parametrize("size", SIZES)
def test_a_pipelines_latents_at_every_step_and_its_pictures(
    exported: tuple[str, Any, Path], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, pipeline, folder = exported
    (width, height), bundle, steps = size, open_bundle(folder), STEPS[kind]
    latent, random = (2, 4, height // 8, width // 8), np.random.default_rng(5)
    z, noise = (random.standard_normal(shape).astype(np.float32) for shape in (latent, (steps, *latent)))
    drawn = iter(noise)
    if kind == "sprint":
        module = diffusers.schedulers.scheduling_scm
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.from_numpy(next(drawn)))
    expected: list[np.ndarray] = []

    def look(_pipeline: Any, step: int, t: Any, told: dict[str, Any]) -> dict[str, Any]:
        expected.append(told["latents"].numpy() / (SEEN[step] if kind == "sprint" else 1.0))
        return {}

    pictures = pipeline(
        prompt=PROMPTS,
        height=height,
        width=width,
        latents=torch.from_numpy(z),
        use_resolution_binning=False,
        output_type="np",
        callback_on_step_end=look,
        **({"negative_prompt": ["", "snow"]} if kind == "sana" else {}),
    ).images
    images = assert_same_run(
        bundle,
        GivenNoise(z, noise),
        expected,
        pictures,
        PROMPTS,
        size,
        **({"negative": [None, "snow"]} if kind == "sana" else {}),
    )
    assert len(expected) == steps
    assert images.std() > 15


def test_what_the_bundle_says(exported: tuple[str, Any, Path]) -> None:
    kind, pipeline, folder = exported
    bundle = open_bundle(folder)
    manifest, text = bundle.manifest, bundle.manifest.text
    assert text is not None and text.instruction is not None and set(manifest.requires) == {"text", "instruction"}
    assert text.instruction.tokens == len(pipeline.tokenizer.encode(text.instruction.text))
    assert (text.factor, text.multiple, text.tokens, manifest.defaults.guidance) == (8, 1, 300, 4.5)
    assert "position" not in manifest.graphs and manifest.vae is not None and manifest.vae.kind == "dc"
    if kind == "sprint":
        assert (manifest.defaults.program, text.guidance, text.empty) == ("flow-scm-2", "embedded", None)
        with pytest.raises(RequestError, match="reads its guidance as a number"):
            generate(bundle, seeds=[1], prompts=["a fox"], negative="snow")
        return
    assert (manifest.defaults.program, manifest.model.timestep_range) == ("flow-dpm++-20", (1000.0, 0.0))
    fewer = bundle.program(steps=5)  # on the shift that the pipeline has
    assert fewer.name == "flow-dpm++-5" and fewer.made["shift"] == 3.0
