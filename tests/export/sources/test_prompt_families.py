"""Folders of families that take prompts: what is read of them, and what is refused. Nothing is exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ditedge.export.sources.families import FAMILIES, family_of
from ditedge.export.sources.flow_scheduler import read_flow
from ditedge.export.sources.prompt_checkpoint import PromptCheckpoint
from ditedge.runtime.errors import CheckpointError
from ditedge.runtime.samplers.flow_settings import FlowInfo
from tests.export.joint_pipelines import flux_transformer, sd3_transformer


def read(folder: Path) -> PromptCheckpoint:
    found = family_of(folder)
    assert found is not None
    return found(folder)


def edit(folder: Path, **changes: Any) -> Path:
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    return folder


def saved(folder: Path, make: Callable[[bool], Any] = sd3_transformer, kind: bool = True, **changes: Any) -> Path:
    make(kind, **changes).save_pretrained(folder)
    return folder


def test_a_family_that_nobody_reads_is_named_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "PRXTransformer2DModel"}')
    with pytest.raises(CheckpointError, match="'PRXTransformer2DModel', not a DiT") as raised:
        family_of(tmp_path)
    assert all(name in str(raised.value) for name in FAMILIES)


def test_a_transformer_alone_is_trained_with_the_families_own_encoders(tmp_path: Path) -> None:
    sd3 = read(saved(tmp_path / "sd3", pooled_projection_dim=2048, joint_attention_dim=4096))
    assert [(use.info.tokens, use.info.width, use.info.pooled) for use in sd3.encoders] == [
        (77, 768, 768), (77, 1280, 1280), (256, 4096, None)
    ]  # fmt: skip
    assert sd3.process.flow == FlowInfo(shift=3.0, spacing="trained") and sd3.process.guidance == 7.0
    dev, schnell = (read(saved(tmp_path / f"flux-{told}", flux_transformer, told)) for told in (True, False))
    assert [use.info.tokens for use in dev.encoders] == [77, 512]
    assert [use.info.tokens for use in schnell.encoders] == [77, 256]
    assert (dev.process.kind, dev.process.guidance, dev.process.steps) == ("embedded", 3.5, 28)
    assert (schnell.process.kind, schnell.process.guidance, schnell.process.steps) == ("none", 1.0, 4)
    assert dev.config.input_size == 128 and dev.process.flow is not None and dev.process.flow.by_size is not None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"qk_norm": "layer_norm"}, "'qk_norm' is 'layer_norm': null and 'rms_norm' are read"),
        ({"dual_attention_layers": [2]}, "'dual_attention_layers' is not a list of blocks"),
        ({"pooled_projection_dim": 17}, "pooled rows have 2048 numbers, 'pooled_projection_dim' is 17"),
        ({"num_layers": "2"}, "'num_layers' is '2', not a number"),
        ({"caption_projection_dim": 30}, "'caption_projection_dim' is not the width"),
        ({"pos_embed_max_size": 3}, "'pos_embed_max_size' 3 is less than a picture of training has patches"),
        ({"pos_embed_max_size": 13}, "key 'pos_embed.pos_embed' has shape"),
        ({"num_layers": 3}, "transformer_blocks.1.norm1_context.linear.weight' has shape"),
    ],
)
def test_misfits_of_sd3(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    folder = saved(tmp_path / "sd3", pooled_projection_dim=2048, joint_attention_dim=4096)
    with pytest.raises(CheckpointError, match=sentence):
        read(edit(folder, **changes))


def test_a_table_of_positions_that_was_trained_is_refused(tmp_path: Path) -> None:
    network = sd3_transformer(True, pooled_projection_dim=2048, joint_attention_dim=4096)
    network.pos_embed.pos_embed += 0.01 * torch.randn_like(network.pos_embed.pos_embed)
    network.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is no table of rows and of columns"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"axes_dims_rope": [4, 6, 8]}, "'axes_dims_rope' is not three even numbers that add up"),
        ({"in_channels": 63}, "'in_channels' 63 is not a multiple of 4"),
        ({"guidance_embeds": 1}, "'guidance_embeds' is neither true nor false"),
        ({"guidance_embeds": False}, "guidance_embedder.linear_1.weight' is not part of FLUX.1"),
        ({"patch_size": 2}, "'patch_size' is 2: FLUX.1 has 1"),
    ],
)
def test_misfits_of_flux(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        read(edit(saved(tmp_path / "flux", flux_transformer), **changes))


@pytest.mark.parametrize("spacing", ["even", "trained"])
@pytest.mark.parametrize(
    "settings",
    [
        {"shift": 3.0},
        {"shift": 1.0},
        {"use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "base_shift": 0.3, "max_shift": 0.9, "time_shift_type": "linear"},
    ],
)
def test_steps_are_spaced_as_diffusers_scheduler_does(tmp_path: Path, settings: dict[str, Any], spacing: Any) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = FlowMatchEulerDiscreteScheduler(**settings)
    scheduler.save_pretrained(tmp_path)
    flow = read_flow(tmp_path / "scheduler_config.json", FlowInfo(spacing=spacing))
    for steps, tokens in ((28, 4096), (7, 960), (1, 300)):
        config = scheduler.config
        sizes = (config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift)
        told = {"mu": calculate_shift(tokens, *sizes)} if flow.by_size is not None else {}
        sigmas = np.linspace(1.0, 1 / steps, steps)
        scheduler.set_timesteps(**({"sigmas": sigmas} if spacing == "even" else {"num_inference_steps": steps}), **told)
        grid = flow.grid(steps, flow.shift_of(tokens, steps), 1000.0, False)
        np.testing.assert_allclose(grid.timestep, scheduler.timesteps.numpy(), rtol=2e-6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"_class_name": "DDIMScheduler"}, "'_class_name' is 'DDIMScheduler', this family is sampled with FlowMatch"),
        ({"invert_sigmas": True}, "'invert_sigmas' is 'True': only False is read"),
        ({"shift_terminal": 0.02}, "'shift_terminal' is '0.02': only None is read"),
        ({"shift": -1.0}, "its shift makes no sense"),
        ({"use_dynamic_shifting": True, "max_image_seq_len": 256}, "its shift makes no sense"),
    ],
)
def test_schedulers_that_are_not_read(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=sentence):
        read_flow(path, FlowInfo())
