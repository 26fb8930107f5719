"""HunyuanDiT: its network, places, steps, folders and whole pipeline against diffusers' own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from ditedge.export.networks.hunyuan_dit import HunyuanDiT
from ditedge.export.sources.families import family_of
from ditedge.export.sources.prompt_checkpoint import PromptCheckpoint
from ditedge.runtime import open_bundle
from ditedge.runtime.errors import CheckpointError
from ditedge.runtime.loop.noise import GivenNoise
from ditedge.runtime.loop.verify import relative_error
from ditedge.runtime.samplers.schedule import respaced_timesteps
from tests.export.hunyuan_dit_pipelines import (
    BERT_WIDTH,
    BETAS,
    T5_WIDTH,
    hunyuan_dit_pipeline,
    hunyuan_dit_transformer,
)
from tests.export.joint_pipelines import HEAD, SIDE, export_joint
from tests.export.same_run import assert_same_run

PROMPTS = ["a red fox", "A dark ankle boot on the left of a handbag in the snow "]


def read(folder: Path) -> PromptCheckpoint:
    found = family_of(folder)
    assert found is not None
    return found(folder)


def places_of(pipeline: Any, h: int, w: int) -> Any:
    """What the pipeline tells its network of h x w tokens."""
    crops = pipeline.get_resize_crop_region_for_grid((h, w), 32)
    return pipeline.get_2d_rotary_pos_embed(HEAD, crops, (h, w), output_type="pt")


@pytest.mark.parametrize("told", [True, False])
@torch.no_grad()
def test_it_is_diffusers_own(tmp_path: Path, told: bool) -> None:
    """Prompts of 5, 77 and 2 tokens of BERT, 9, 256 and 1 of mT5; a picture is longer one way, and then the other."""
    from diffusers.pipelines.hunyuandit import pipeline_hunyuandit

    reference = hunyuan_dit_transformer(told)
    reference.save_pretrained(tmp_path)
    model, random = read(tmp_path).model(), torch.Generator().manual_seed(1)
    assert isinstance(model, HunyuanDiT)
    bert, t5 = torch.randn(3, 77, BERT_WIDTH, generator=random), torch.randn(3, 256, T5_WIDTH, generator=random)
    counts, timestep = torch.tensor([[9.0], [256.0], [1.0]]), torch.tensor([981.0, 500.0, 1.0])
    mask = (torch.arange(77) < torch.tensor([[5], [77], [2]])).long()
    mask_t5 = (torch.arange(256) < counts).long()
    context, vector = model.context(bert, mask, t5, counts)
    for h, w in ((5, 7), (7, 4), (8, 8), (1, 2)):
        x = torch.randn(3, 4, 2 * h, 2 * w, generator=random)
        sizes = torch.tensor([[1024.0, 1024.0, 16 * h, 16 * w, 0.0, 0.0]]).repeat(3, 1)
        turns, style = places_of(pipeline_hunyuandit, h, w), torch.zeros(3, dtype=torch.int64)
        expected = reference(x, timestep, bert, mask, t5, mask_t5, sizes, style, turns).sample
        sides = [torch.full((3,), 16.0 * side) for side in (h, w)] if told else []
        position = model.position(torch.arange(float(h)), torch.arange(float(w)))
        found = model.trunk(x, model.conditioner(timestep, vector, *sides), context, torch.arange(3), position)
        assert relative_error(found.numpy(), expected.numpy()) < 1e-6


def test_its_steps_begin_one_timestep_later(tmp_path: Path) -> None:
    scheduler = diffusers.DDPMScheduler(**BETAS, clip_sample=False, steps_offset=1)
    scheduler.save_pretrained(tmp_path / "scheduler")
    hunyuan_dit_transformer().save_pretrained(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text('{"_class_name": "HunyuanDiTPipeline"}')
    process = read(tmp_path).process
    assert (process.prediction, process.guidance, process.kind) == ("v", 5.0, "true")
    assert process.sampling == {
        "sampler": "ddpm", "respacing": "ddim50+1", "variance": "fixed-small", "clip_x0": False
    }  # fmt: skip
    scheduler.set_timesteps(50)
    np.testing.assert_array_equal(respaced_timesteps("ddim50+1"), scheduler.timesteps.numpy())


@pytest.fixture(scope="module", params=[True, False], ids=["1.1", "1.2"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("hunyuan")
    pipeline = hunyuan_dit_pipeline(folder / "bert", request.param)
    return pipeline, export_joint(pipeline, folder / "pipeline", folder / "bundle")


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 64), (96, 48)])
def test_a_pipelines_latents_at_every_step_and_its_pictures(
    exported: tuple[Any, Path], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (pipeline, folder), (width, height), random = exported, size, np.random.default_rng(5)
    latent = (2, 4, height // 8, width // 8)
    z, noise = (random.standard_normal(shape).astype(np.float32) for shape in (latent, (50, *latent)))
    given, expected = iter(noise), []
    module = diffusers.schedulers.scheduling_ddpm
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.from_numpy(next(given)))

    def on_step_end(pipeline: Any, step: int, t: Any, told: dict[str, Any]) -> dict[str, Any]:
        expected.append(told["latents"].numpy().copy())
        return told

    pictures = pipeline(
        prompt=list(PROMPTS),
        height=height,
        width=width,
        latents=torch.from_numpy(z),
        use_resolution_binning=False,
        output_type="np",
        callback_on_step_end=on_step_end,
    ).images
    assert len(expected) == 50
    assert_same_run(open_bundle(folder), GivenNoise(z, noise), expected, pictures, PROMPTS, size)


@pytest.mark.parametrize(
    ("part", "changes", "sentence"),
    [
        ("model_index.json", {"_class_name": "HunyuanDiTPAGPipeline"}, "none with a ControlNet or PAG"),
        ("transformer/config.json", {"learn_sigma": False}, "'learn_sigma' is False: a HunyuanDiT has True"),
        ("transformer/config.json", {"num_layers": 3}, "'num_layers' 3 is not even"),
        ("transformer/config.json", {"hidden_size": 16}, "'hidden_size' is not the width 32"),
        ("transformer/config.json", {"attention_head_dim": 18}, "'attention_head_dim' 18 is not a multiple of 4"),
        ("transformer/config.json", {"text_len": 78}, "key 'text_embedding_padding' has shape"),
        ("transformer/config.json", {"mlp_ratio": 2.0}, "ff.net.0.proj.weight' has shape"),
        ("transformer/config.json", {"use_style_cond_and_image_meta_size": False}, "extra_embedder.linear_1.weight"),
    ],
)
def test_what_is_not_read(tmp_path: Path, part: str, changes: dict[str, Any], sentence: str) -> None:
    hunyuan_dit_transformer().save_pretrained(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text('{"_class_name": "HunyuanDiTPipeline"}')
    path = tmp_path / part
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=sentence):
        read(tmp_path)


def test_a_transformer_alone_was_trained_on_its_versions_betas(tmp_path: Path) -> None:
    for told, end in ((True, 0.03), (False, 0.018)):
        hunyuan_dit_transformer(told).save_pretrained(tmp_path / str(told))
        checkpoint = read(tmp_path / str(told))
        assert checkpoint.process.schedule is not None and checkpoint.process.schedule.beta_end == end
        assert checkpoint.config.input_size == SIDE
