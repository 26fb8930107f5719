"""FLUX.2: its network, steps, folders and whole pipelines against diffusers' own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from ditedge.export import ExportOptions
from ditedge.export.graphs.modules import uint8_image
from ditedge.export.graphs.write import GRAPH_TOLERANCE, write_specs
from ditedge.export.graphs.write_text import _specs
from ditedge.export.networks.flux2 import Flux2, Flux2Config
from ditedge.export.sources.families import family_of
from ditedge.export.sources.prompt_checkpoint import PromptCheckpoint
from ditedge.export.sources.text_folder import TextFolder, text_folders
from ditedge.export.sources.vae_checkpoint import read_vae
from ditedge.export.truth.reference import flow_sigmas, sigma_trajectory
from ditedge.runtime import open_bundle
from ditedge.runtime.errors import CheckpointError
from ditedge.runtime.loop.noise import GivenNoise
from ditedge.runtime.loop.prompts import prompt_of_rows
from ditedge.runtime.loop.verify import relative_error
from tests.export.flux2_pipelines import (
    CHANNELS,
    FIRST,
    ROWS,
    dev_pipeline,
    flux2_transformer,
    klein_pipeline,
    shallow,
    thinking_tokenizer,
)
from tests.export.joint_pipelines import HEAD, HEADS, SIDE, export_joint
from tests.export.same_run import assert_same_run

PROMPTS = ["a red fox", "A dark ankle boot on the left of a handbag in the snow "]
PACKED = 4 * CHANNELS
AXES = (4, 4, 4, 4)


def read(folder: Path) -> PromptCheckpoint:
    found = family_of(folder)
    assert found is not None
    return found(folder)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("told", [False, True])
@torch.no_grad()
def test_it_is_diffusers_own(told: bool) -> None:
    from diffusers import Flux2KleinPipeline

    reference = flux2_transformer(told)
    width = HEADS * HEAD
    config = Flux2Config(
        SIDE, PACKED, PACKED, HEADS, HEAD, 1, 2, ROWS, 3 * width, axes=AXES, told_guidance=told, tokens=300
    )
    model = Flux2(config)
    model.load_state_dict(reference.state_dict())
    random = torch.Generator().manual_seed(1)
    x, rows = (torch.randn(3, *shape, generator=random) for shape in ((PACKED, 5, 7), (300, ROWS)))
    timestep, guidance = torch.tensor([1000.0, 500.0, 3.0]), torch.tensor([3.5, 1.0, 7.0])
    pipeline = Flux2KleinPipeline
    places, words = pipeline._prepare_latent_ids(x), pipeline._prepare_text_ids(rows)
    expected = reference(
        pipeline._pack_latents(x), rows, timestep / 1000, places, words, guidance if told else None
    ).sample
    modulation = model.conditioner(timestep, *([guidance] if told else []))
    position = model.position(torch.arange(5.0), torch.arange(7.0))
    found = model.trunk(x, modulation, model.context(rows), torch.arange(3), position)
    unpacked = pipeline._unpack_latents_with_ids(expected, places, 5, 7)
    assert relative_error(found.numpy(), unpacked.numpy()) < 1e-6


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_steps_are_spaced_as_its_pipelines_do(tmp_path: Path, kind: str) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    flux2_transformer().save_pretrained(tmp_path / "transformer")
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0, time_shift_type=kind)
    scheduler.save_pretrained(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text('{"_class_name": "Flux2KleinPipeline"}')
    flow = read(tmp_path).process.flow
    assert flow is not None
    for steps, tokens in ((4, 4096), (50, 64), (28, 4300), (10, 4301), (4, 9216), (200, 1024)):
        mu = compute_empirical_mu(tokens, steps)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        grid = flow.grid(steps, flow.shift_of(tokens, steps), 1000.0, False)
        np.testing.assert_allclose(grid.timestep, scheduler.timesteps.numpy(), rtol=2e-6)
        np.testing.assert_allclose(flow_sigmas(flow, steps, tokens), scheduler.sigmas[:-1].numpy(), rtol=2e-6)


class Run(NamedTuple):
    """What diffusers' pipeline does."""

    z: np.ndarray
    latents: list[np.ndarray]
    pictures: np.ndarray


def run_of(pipeline: Any, size: tuple[int, int], **told: Any) -> Run:
    """Of both prompts, with its defaults."""
    latent = (2, PACKED, size[1] // 16, size[0] // 16)
    z = np.random.default_rng(5).standard_normal(latent).astype(np.float32)
    latents: list[np.ndarray] = []

    def on_step_end(pipeline: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        latents.append(given["latents"].transpose(1, 2).unflatten(2, latent[2:]).numpy().copy())
        return given

    given = {"width": size[0], "height": size[1], "latents": torch.from_numpy(z), "output_type": "np"}
    told = (
        {"prompt": list(PROMPTS)} | told | ({"num_inference_steps": 4} if pipeline.config.get("is_distilled") else {})
    )
    made = pipeline(callback_on_step_end=on_step_end, **given, **told)
    return Run(z, latents, made.images)


@pytest.mark.parametrize("distilled", [True, pytest.param(False, marks=pytest.mark.slow)])
@torch.no_grad()
def test_the_whole_pipeline_in_pytorch(tmp_path: Path, distilled: bool) -> None:
    """Of what the graphs are made from, Qwen3's rows of layers 9, 18 and 27 among them."""
    from tokenizers import Tokenizer

    pipeline = klein_pipeline(distilled)
    pipeline.save_pretrained(tmp_path)
    checkpoint = read(tmp_path)
    model, process, (text,) = checkpoint.model(), checkpoint.process, text_folders(tmp_path, checkpoint.encoders)
    tokenizer, ids = Tokenizer.from_str(text.tokenizer_json()), torch.full((3, model.config.tokens), text.pad())
    for own, prompt in zip(ids, [*PROMPTS, ""], strict=True):
        told = tokenizer.encode(prompt).ids
        own[: len(told)] = torch.tensor(told)
    context, decoder, guidance = model.context(text.load()(ids)), read_vae(tmp_path).decoder, process.guidance
    assert process.flow is not None and process.steps is not None
    run, position = run_of(pipeline, (96, 64)), model.position(torch.arange(4.0), torch.arange(6.0))

    def network(x: Tensor, t: float) -> Tensor:
        rows = model.conditioner(torch.full((2,), t))
        towards = model.trunk(x, rows, context, torch.tensor([0, 1]), position)
        if distilled:
            return towards
        away = model.trunk(x, rows, context, torch.tensor([2, 2]), position)
        return away + guidance * (towards - away)

    found = sigma_trajectory(network, torch.from_numpy(run.z), flow_sigmas(process.flow, process.steps, 24), 1000.0)
    assert len(found) == len(run.latents) == (4 if distilled else 50)
    assert relative_error(found.numpy(), np.stack(run.latents)) < 1e-5
    difference = np.abs(uint8_image(decoder(found[-1])).numpy().astype(int) - np.round(255 * run.pictures).astype(int))
    assert np.mean(difference <= 1) >= 0.999


@pytest.fixture(scope="module", params=[True, False], ids=["distilled", "base"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder, pipeline = tmp_path_factory.mktemp("klein"), klein_pipeline(request.param, layers=4)
    with shallow():
        return pipeline, export_joint(pipeline, folder / "pipeline", folder / "bundle")


@pytest.mark.slow
@pytest.mark.parametrize("size", [(128, 128), (192, 64)])
def test_a_pipelines_latents_at_every_step_and_its_pictures(exported: tuple[Any, Path], size: tuple[int, int]) -> None:
    (pipeline, folder), distilled = exported, exported[0].config.is_distilled
    run, bundle = run_of(pipeline, size, text_encoder_out_layers=FIRST), open_bundle(folder)
    text, latent = bundle.manifest.text, run.z.shape
    assert text is not None and (text.guidance, text.factor) == ("none" if distilled else "true", 16)
    noise = GivenNoise(run.z, np.zeros((4 if distilled else 50, *latent), np.float32))
    assert_same_run(bundle, noise, run.latents, run.pictures, PROMPTS, size)


@pytest.mark.slow
@torch.no_grad()
def test_dev_with_recorded_prompts(tmp_path: Path) -> None:
    """Its text encoder is not read; guidance as a number, 4 as in its pipeline."""
    pipeline = dev_pipeline()
    folder = export_joint(pipeline, tmp_path / "pipeline", tmp_path / "bundle")
    rows = torch.randn(2, 512, ROWS, generator=torch.Generator().manual_seed(4))
    run = run_of(pipeline, (96, 64), prompt=None, prompt_embeds=rows)
    noise = GivenNoise(run.z, np.zeros((50, *run.z.shape), np.float32))
    prompts = [prompt_of_rows(own.numpy()) for own in rows]
    assert_same_run(open_bundle(folder), noise, run.latents, run.pictures, prompts, (96, 64))


def test_graphs_of_prompts_and_places_are_the_module(tmp_path: Path) -> None:
    """`write_specs` compares each with PyTorch at other sizes than those it was traced with."""
    width = HEADS * HEAD
    config = Flux2Config(SIDE, PACKED, PACKED, HEADS, HEAD, 1, 2, ROWS, 3 * width, axes=AXES)
    model, told = Flux2(config), []
    model.load_state_dict(flux2_transformer().state_dict())
    specs = [spec for spec in _specs(model.eval(), False) if spec.name in ("context", "position")]
    both = [{"P": 2, "h": h, "w": w} for h, w in ((5, 8), (4, 3))]
    opset = ExportOptions().opset
    written = write_specs(specs, (both[0], both[1]), 1000.0, tmp_path, opset, lambda *said: told.append(said[0]))
    assert GRAPH_TOLERANCE == 1e-5 and all(f"checking {name}.onnx against PyTorch" in told for name in written)


def test_a_prompt_is_what_a_user_says_in_a_chat_without_thinking(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    flux2_transformer().save_pretrained(tmp_path / "transformer")
    own = thinking_tokenizer()
    own.save_pretrained(tmp_path / "tokenizer")
    (use,) = read(tmp_path / "transformer").encoders
    text = TextFolder(use, tmp_path / "encoder", tmp_path / "tokenizer", "")
    made = Tokenizer.from_str(text.tokenizer_json())
    for prompt in ("a red fox", "", " us \n\nUS<|im_end|>us <|endoftext|>"):
        said = [{"role": "user", "content": prompt}]
        whole = own.apply_chat_template(said, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        assert made.encode(prompt).ids == own(whole).input_ids
    edit(tmp_path / "tokenizer" / "tokenizer_config.json", padding_side="left")
    with pytest.raises(CheckpointError, match="'padding_side' is 'left': this family's is read at the right"):
        text.load()


@pytest.mark.parametrize(
    ("index", "told", "expected"),
    [
        ({"_class_name": "Flux2KleinPipeline", "is_distilled": True}, False, ("none", 4, 1.0)),
        ({"_class_name": "Flux2KleinPipeline"}, False, ("true", 50, 4.0)),
        ({}, False, ("true", 50, 4.0)),
        ({"_class_name": "Flux2Pipeline"}, True, ("embedded", 50, 4.0)),
    ],
)
def test_guidance_is_what_the_folder_says(
    tmp_path: Path, index: dict[str, Any], told: bool, expected: tuple[str, int, float]
) -> None:
    flux2_transformer(told).save_pretrained(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    process = read(tmp_path).process
    assert (process.kind, process.steps, process.guidance) == expected


@pytest.mark.parametrize(
    ("part", "changes", "sentence"),
    [
        ("model_index.json", {"_class_name": "Flux2KleinKVPipeline"}, "none that reads pictures beside words"),
        ("model_index.json", {"is_distilled": 1}, "'is_distilled' is neither true nor false"),
        ("transformer/config.json", {"guidance_embeds": True}, "Flux2KleinPipeline tells its network no guidance"),
        ("model_index.json", {"_class_name": "Flux2Pipeline"}, "Flux2Pipeline tells its network its guidance"),
        ("transformer/config.json", {"axes_dims_rope": [4, 6, 6]}, "'axes_dims_rope' is not four even numbers"),
        ("transformer/config.json", {"patch_size": 2}, "'patch_size' is 2: a FLUX.2 has 1"),
        ("transformer/config.json", {"out_channels": 8}, f"'out_channels' is 8: expected {PACKED}"),
        ("transformer/config.json", {"mlp_ratio": 2.0}, "ff.linear_in.weight' has shape"),
        ("transformer/config.json", {"num_layers": 2}, "key 'transformer_blocks.1.attn"),
    ],
)
def test_what_is_not_read(tmp_path: Path, part: str, changes: dict[str, Any], sentence: str) -> None:
    flux2_transformer().save_pretrained(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text('{"_class_name": "Flux2KleinPipeline"}')
    edit(tmp_path / part, **changes)
    with pytest.raises(CheckpointError, match=sentence):
        read(tmp_path)
