"""PixArt against diffusers: the network, and whole pipelines at every step, with their own scheduler and guidance; its
distilled variants, which are the same network (traced once for all of this file), and folders of older releases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli import main
from ditedge.export import bundle_from_checkpoint
from ditedge.export.networks.pixart import PixArt, PixArtConfig
from ditedge.export.options import ExportOptions
from ditedge.runtime import open_bundle
from ditedge.runtime.errors import CheckpointError, RequestError
from ditedge.runtime.loop.generate import generate
from ditedge.runtime.loop.noise import GivenNoise, SeededNoise
from ditedge.runtime.loop.session import Session
from ditedge.runtime.loop.verify import relative_error
from tests.conftest import BUNDLES, PIXART
from tests.export.pixart_pipelines import SIDE, export_pixart, small_pipeline, small_transformer
from tests.export.same_run import assert_same_run
from tests.export.test_committed_bundles import REMEDY, facts

PROMPTS = ["a red fox", "A dark ankle boot on the left of a handbag in the snow "]
STEPS = 20  # of PixArt's pipelines
BETAS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
# folder's name, scheduler, what its users give the pipeline, the bundle's program, random noises that are drawn
VARIANTS: dict[str, tuple[str, Any, dict[str, Any], str, int]] = {
    "LCM": ("pipeline", diffusers.LCMScheduler(**BETAS), {"num_inference_steps": 4, "guidance_scale": 0.0}, "lcm-4", 3),
    "DMD": (
        "Small-Alpha-DMD", diffusers.DDPMScheduler(**BETAS, clip_sample=False),
        {"num_inference_steps": 1, "timesteps": [400], "guidance_scale": 1}, "dmd-1", 0,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=["alpha", pytest.param("sigma", marks=pytest.mark.slow)])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    if request.param == "alpha":
        tiny = request.getfixturevalue("tiny_pixart")
        return tiny.pipeline, tiny.bundle
    folder, pipeline = tmp_path_factory.mktemp("pixart"), small_pipeline(sigma=True)
    return pipeline, export_pixart(pipeline, folder / "pipeline", folder / PIXART)


@pytest.mark.parametrize("told", [False, True])
@torch.no_grad()
def test_the_network_is_diffusers_own(told: bool) -> None:
    reference = small_transformer(use_additional_conditions=told)
    model = PixArt(PixArtConfig(SIDE, 2, 4, 8, 3, 8, 2, 16, 2.0, told_size=told))
    model.load_state_dict(reference.state_dict())
    generator = torch.Generator().manual_seed(1)
    x, hidden = torch.randn(3, 4, 12, 20, generator=generator), torch.randn(3, 7, 16, generator=generator)
    timestep, mask = torch.tensor([1.0, 500.0, 999.0]), torch.ones(3, 7, dtype=torch.int64)
    mask[1, 3:] = 0
    height, width = torch.full((3,), 96.0), torch.full((3,), 160.0)
    sizes = {"resolution": torch.tensor([[96.0, 160.0]] * 3), "aspect_ratio": torch.tensor([[0.6]] * 3)}
    expected = reference(
        x, hidden, timestep, added_cond_kwargs=sizes if told else dict.fromkeys(sizes), encoder_attention_mask=mask
    ).sample
    modulation = model.conditioner(timestep, *((height, width) if told else ()))
    position = model.position(torch.arange(6.0), torch.arange(10.0))
    found = model.trunk(x, modulation, *model.context(hidden, mask), torch.arange(3), position)
    assert relative_error(found.numpy(), expected.numpy()) < 1e-6  # measured: 1.3e-7


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' scheduler
@pytest.mark.parametrize("size", [(64, 64), (96, 48)])
def test_a_pipelines_latents_at_every_step_and_its_pictures(exported: tuple[Any, Path], size: tuple[int, int]) -> None:
    pipeline, folder = exported
    (width, height), bundle = size, open_bundle(folder)
    latent = (2, 4, height // 8, width // 8)
    z = np.random.default_rng(5).standard_normal(latent).astype(np.float32)
    expected: list[np.ndarray] = []
    pictures = pipeline(
        prompt=PROMPTS,
        height=height,
        width=width,
        latents=torch.from_numpy(z),
        use_resolution_binning=False,
        clean_caption=False,
        output_type="np",
        callback=lambda step, t, x: expected.append(x.numpy().copy()),
    ).images
    assert_same_run(bundle, GivenNoise(z, np.zeros((STEPS, *latent), np.float32)), expected, pictures, PROMPTS, size)
    assert len(expected) == STEPS


@pytest.mark.parametrize("exported", ["alpha"], indirect=True)
def test_the_committed_bundle_is_what_export_makes_today(exported: tuple[Any, Path]) -> None:
    _, fresh = exported
    assert facts(BUNDLES / PIXART) == facts(fresh), REMEDY
    for file in ("text/tokenizer.json", *open_bundle(fresh).manifest.programs.values()):
        assert (BUNDLES / PIXART / file).read_bytes() == (fresh / file).read_bytes(), REMEDY
    ours, theirs = (
        generate(open_bundle(folder), seeds=[1], prompts=["a red fox"], output="latents")
        for folder in (BUNDLES / PIXART, fresh)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3, err_msg=REMEDY)


def test_padding_and_neighbours_change_nothing(exported: tuple[Any, Path]) -> None:
    bundle = open_bundle(exported[1])
    both = generate(bundle, seeds=[3, 4], prompts=PROMPTS, output="latents")
    alone = generate(bundle, seeds=[4], prompts=PROMPTS[1:], output="latents")
    np.testing.assert_array_equal(both[1:], alone)
    with Session(bundle) as session:
        rows = session.encode(_prompt(bundle, PROMPTS[0]))["hidden"]
    width, padded = bundle.manifest.output_shape("context", "context")[-1], []
    for tokens in (len(rows), len(rows) + 9):  # the step itself, with less and more padding
        padded.append(_one_step(bundle, rows, tokens, width))
    assert relative_error(padded[0], padded[1]) < 1e-6


def _prompt(bundle: Any, text: str) -> Any:
    from ditedge.runtime.loop.tokenizing import Tokenizer

    return Tokenizer(bundle).prompt(text)[0]


def _one_step(bundle: Any, rows: np.ndarray, tokens: int, width: int) -> np.ndarray:
    """[1, 1, C, H, W]: the x0 estimate of noise, the prompt's rows padded to so many with numbers that say nothing."""
    rng = np.random.default_rng(tokens)
    hidden = 7 * rng.standard_normal((1, tokens, rows.shape[1])).astype(np.float32)
    hidden[0, : len(rows)] = rows
    mask = (np.arange(tokens) < len(rows)).astype(np.int64)[None]
    context, bias = np.empty((1, tokens, width), np.float32), np.empty((1, tokens), np.float32)
    modulation = np.empty((1, bundle.manifest.modulation_width), np.float32)
    position = np.empty((4, 4, bundle.manifest.output_shape("position", "position")[-1]), np.float32)
    state, out = SeededNoise([1], (4, 8, 8)).initial()[:, None], np.empty((1, 1, 4, 8, 8), np.float32)
    with Session(bundle) as session:
        session.engine("context").run({"hidden": hidden, "mask": mask}, {"context": context, "context_bias": bias})
        session.engine("conditioner").run({"timestep": np.array([400], np.float32)}, {"modulation": modulation})
        row = np.arange(4, dtype=np.float32)
        session.engine("position").run({"row": row, "column": row}, {"position": position})
        zero, f32 = np.zeros(1, np.int64), np.float32
        tables = {
            "combine": np.ones((1, 1, 8), f32), "x0_from": np.array([[0, 1]], f32), "x0_bound": np.array([3e38], f32),
            "log_sigma": np.zeros((1, 2), f32), "mix": np.array([[[0, 1, 0]]], f32), "noise": np.zeros_like(state[:, 0]),
        }  # fmt: skip
        rest = {"context": context, "context_bias": bias, "position": position, "modulation": modulation}
        indices = {"sample": zero, "condition": zero, "prompt": zero}
        session.engine("step").run({"state": state, **tables, **rest, **indices}, {"next_state": out})
    return out


def test_a_transformer_folder_alone_takes_recorded_prompts(exported: tuple[Any, Path], tmp_path: Path) -> None:
    pipeline, folder = exported
    pipeline.transformer.save_pretrained(tmp_path / "transformer")
    told = []
    bundle_from_checkpoint(tmp_path / "transformer", tmp_path / "out", ExportOptions(), note=told.append)
    bundle, whole = open_bundle(tmp_path / "out"), open_bundle(folder)
    assert not {"text", "decoder"} & set(bundle.manifest.graphs) and any("300 tokens" in note for note in told)
    with pytest.raises(RequestError, match="has no text encoder: give prompts that `ditedge encode` recorded"):
        generate(bundle, seeds=[1], prompts=["a red fox"], output="latents")
    with pytest.raises(RequestError, match="give a negative prompt, or guidance 1"):
        with Session(whole) as session:
            from ditedge.runtime.loop.prompts import prompt_of_rows

            recorded = prompt_of_rows(session.encode(_prompt(whole, "a red fox")))
        generate(bundle, seeds=[1], prompts=[recorded], output="latents")
    ours = generate(bundle, seeds=[1], prompts=[recorded], guidance=1.0, output="latents")
    theirs = generate(whole, seeds=[1], prompts=["a red fox"], guidance=1.0, output="latents")
    assert relative_error(ours, theirs) < 1e-5


def test_a_decoder_cannot_be_added_yet(tmp_path: Path) -> None:
    options = ["--engine", BUNDLES / PIXART, "--vae", tmp_path, "--out", tmp_path / "out"]
    result = CliRunner().invoke(main, ["add-decoder", *map(str, options)])
    assert result.exit_code == 2 and "takes prompts, and" in result.output and "Traceback" not in result.output


def test_options_and_settings_that_are_no_pixarts(tmp_path: Path) -> None:
    small_transformer().save_pretrained(tmp_path / "transformer")
    config = tmp_path / "transformer" / "config.json"
    with pytest.raises(RequestError, match="--heads says nothing of a model that takes prompts"):
        bundle_from_checkpoint(tmp_path / "transformer", tmp_path / "out", ExportOptions(heads=3))
    text = config.read_text()
    config.write_text(text.replace('"caption_channels": 16', '"caption_channels": null'))
    with pytest.raises(CheckpointError, match="'caption_channels' is 'None', not a number"):
        bundle_from_checkpoint(tmp_path / "transformer", tmp_path / "out", ExportOptions())
    config.write_text(text.replace('"caption_channels": 16', '"caption_channels": 17'))
    with pytest.raises(CheckpointError, match="linear_1.weight' has shape"):
        bundle_from_checkpoint(tmp_path / "transformer", tmp_path / "out", ExportOptions())


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
