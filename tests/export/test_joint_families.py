"""Stable Diffusion 3, FLUX.1, AuraFlow, Z-Image and Lumina 2 against diffusers: networks, whole pipelines at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from ditedge.export.networks.aura_flow import AuraFlow, AuraFlowConfig
from ditedge.export.networks.flux import Flux, FluxConfig
from ditedge.export.networks.sd3 import SD3, SD3Config
from ditedge.export.sources.sd3_folder import _with_table
from ditedge.runtime import open_bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.loop.generate import generate
from ditedge.runtime.loop.noise import GivenNoise
from ditedge.runtime.loop.prompts import prompt_of_rows
from ditedge.runtime.loop.session import Session
from ditedge.runtime.loop.tokenizing import Tokenizer
from ditedge.runtime.loop.verify import relative_error
from tests.counting import Counting
from tests.export.joint_pipelines import (
    CHANNELS,
    FLUX_POOLED,
    HEAD,
    HEADS,
    SD3_POOLED,
    SIDE,
    T5_WIDTH,
    aura_flow_pipeline,
    aura_flow_transformer,
    export_joint,
    flux_pipeline,
    flux_transformer,
    sd3_pipeline,
    sd3_transformer,
    z_image_pipeline,
)
from tests.export.lumina2_pipelines import lumina2_pipeline
from tests.export.same_run import assert_same_run

PROMPTS = ["a red fox", "A dark ankle boot on the left of a handbag in the snow "]


class Family(NamedTuple):
    pipeline: Any
    steps: int
    packed: bool  # the pipeline's latents are tokens
    told: dict[str, Any]  # of its call, what is not its default
    channels: int = CHANNELS


FAMILIES = {
    "sd3.5": lambda: Family(sd3_pipeline(dual=True), 28, False, {}),
    "sd3": lambda: Family(sd3_pipeline(dual=False, t5=False), 28, False, {}),
    "flux-dev": lambda: Family(flux_pipeline(told=True), 28, True, {}),
    "flux-schnell": lambda: Family(
        flux_pipeline(told=False), 4, True, {"num_inference_steps": 4, "max_sequence_length": 256}
    ),
    "aura-flow": lambda: Family(aura_flow_pipeline(), 50, False, {}, channels=4),
    "z-image": lambda: Family(z_image_pipeline(), 50, False, {}),
    "lumina2": lambda: Family(lumina2_pipeline(), 30, False, {}),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "sd3.5"]


@pytest.fixture(scope="module", params=["sd3.5", *SLOW])
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


def test_aura_flow_is_diffusers_own() -> None:
    reference = aura_flow_transformer()
    model = AuraFlow(AuraFlowConfig(SIDE, 2, 4, 4, HEADS, HEAD, 1, 1, T5_WIDTH, 12, tokens=9))
    model.load_state_dict(reference.state_dict())
    random = torch.Generator().manual_seed(1)
    x, rows = (torch.randn(3, *shape, generator=random) for shape in ((4, 10, 14), (9, T5_WIDTH)))
    timestep = torch.tensor([1000.0, 500.0, 3.0])
    with torch.no_grad():
        expected = reference(x, rows, timestep / 1000).sample
        position = model.position(torch.arange(5.0), torch.arange(7.0))
        found = model.trunk(x, model.conditioner(timestep), model.context(rows), torch.arange(3), position)
    assert relative_error(found.numpy(), expected.numpy()) < 1e-6


@pytest.mark.parametrize("size", [(64, 64), (96, 48)])
def test_a_pipelines_latents_at_every_step_and_its_pictures(
    exported: tuple[Family, Path], size: tuple[int, int]
) -> None:
    family, folder = exported
    (width, height), bundle = size, open_bundle(folder)
    latent = (2, family.channels, height // 8, width // 8)
    z = np.random.default_rng(5).standard_normal(latent).astype(np.float32)
    expected: list[np.ndarray] = []

    def on_step_end(pipeline: Any, step: int, t: Any, told: dict[str, Any]) -> dict[str, Any]:
        x = told["latents"]
        expected.append((_flux_class()._unpack_latents(x, height, width, 8) if family.packed else x).numpy().copy())
        return told

    given = torch.from_numpy(z)
    pictures = family.pipeline(
        prompt=list(PROMPTS),
        height=height,
        width=width,
        latents=_flux_class()._pack_latents(given, *latent) if family.packed else given,
        output_type="np",
        callback_on_step_end=on_step_end,
        **family.told,
    ).images
    assert_same_run(
        bundle, GivenNoise(z, np.zeros((family.steps, *latent), np.float32)), expected, pictures, PROMPTS, size
    )
    assert len(expected) == family.steps


def _flux_class() -> Any:
    from diffusers import FluxPipeline

    return FluxPipeline


def test_what_a_prompt_becomes_depends_on_no_other(exported: tuple[Family, Path]) -> None:
    """Not on its neighbours, nor on whether it came as words, or recorded; each is encoded once."""
    bundle = open_bundle(exported[1])
    names = [name for name in bundle.manifest.graphs if name.startswith(("text", "context", "position"))]
    program, settings = bundle.program(steps=3), {"output": "latents", "batch": 3}
    with Session(bundle) as lent:
        counted = {name: Counting(lent.engine(name)) for name in names}
        with Session(bundle, engines=counted) as session:
            both = generate(bundle, seeds=range(4), prompts=PROMPTS * 2, program=program, session=session, **settings)
    no_words = int(bundle.manifest.text.guidance == "true")  # which is recorded
    wanted = {name: 2 for name in names} | {"context": 2 + no_words, "position": 1}
    assert {name: engine.runs for name, engine in counted.items()} == wanted
    with Session(bundle) as session:
        recorded = prompt_of_rows(session.encode(Tokenizer(bundle).prompt(PROMPTS[1])[0]))
        for prompt in (PROMPTS[1], recorded):
            alone = generate(bundle, seeds=[3], prompts=[prompt], program=program, session=session, **settings)
            np.testing.assert_array_equal(both[3:], alone)


def test_step_by_step_is_the_same_picture(exported: tuple[Family, Path]) -> None:
    bundle = open_bundle(exported[1])
    whole = generate(
        bundle, seeds=[1, 2], prompts=PROMPTS, size=(96, 48), program=bundle.program(steps=3), output="latents"
    )
    with Session(bundle) as session:
        program = bundle.program(steps=3)
        runs = [session.start(program, prompt, i, size=(96, 48)) for i, prompt in enumerate(PROMPTS, start=1)]
        session.advance(runs[:1])
        while not all(run.done for run in runs):
            session.advance(runs)
    assert relative_error(np.stack([run.latent for run in runs]), whole) < 1e-6


def test_guidance_is_what_the_family_has(exported: tuple[Family, Path]) -> None:
    bundle, given = open_bundle(exported[1]), {"seeds": [1], "prompts": PROMPTS[:1], "output": "latents"}
    kind, program = bundle.manifest.text.guidance, bundle.program(steps=2)
    if kind == "true":
        assert "guidance" not in (exported[1] / "manifest.json").read_text().split('"graphs"')[0].split('"text"')[1]
        return
    with pytest.raises(RequestError, match="evaluates each step once: leave negative prompts out"):
        generate(bundle, negative="snow", program=program, **given)
    if kind == "none":
        with pytest.raises(RequestError, match="guidance 2: .* has none: leave it out, or give 1"):
            generate(bundle, guidance=2.0, program=program, **given)
        return
    told = [generate(bundle, guidance=guidance, program=program, **given) for guidance in (3.5, None, 5.0)]
    np.testing.assert_array_equal(told[0], told[1])  # FluxPipeline's default
    assert relative_error(told[2], told[0]) > 1e-4


def test_ready_programs_are_those_of_sizes(exported: tuple[Family, Path]) -> None:
    """A device takes them by the number of image tokens; here they are made when a size is asked for."""
    bundle = open_bundle(exported[1])
    by_tokens = bundle.manifest.defaults.by_tokens
    assert bool(by_tokens) == (bundle.manifest.flow.by_size is not None)
    shifts = set()
    for tokens, name in by_tokens.items():
        ready, made = bundle.program(name), bundle.program(tokens=int(tokens))
        assert ready.made == made.made
        np.testing.assert_array_equal(ready.mix, made.mix)
        np.testing.assert_array_equal(ready.timestep, made.timestep)
        shifts.add(made.made["shift"])
    assert len(shifts) == len(by_tokens)
