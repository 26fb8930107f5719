"""Lumina 2's network, guidance and folders against diffusers' own classes; its pipeline: test_joint_families.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ditedge.export.graphs.modules import renormalised
from ditedge.export.networks.lumina2 import Lumina2, Lumina2Config, our_names
from ditedge.export.sources.families import family_of
from ditedge.export.sources.lumina2_folder import INSTRUCTION
from ditedge.export.sources.prompt_checkpoint import PromptCheckpoint
from ditedge.runtime.errors import CheckpointError
from ditedge.runtime.loop.verify import relative_error
from tests.export.joint_pipelines import CHANNELS, SIDE
from tests.export.lumina2_pipelines import GEMMA_WIDTH, HEAD, HEADS, KV_HEADS, lumina2_transformer


def read(folder: Path) -> PromptCheckpoint:
    found = family_of(folder)
    assert found is not None
    return found(folder)


@torch.no_grad()
def test_it_is_diffusers_own() -> None:
    """With prompts of 5, 9 and 2 tokens."""
    reference = lumina2_transformer()
    axes, mlp = (4, 4, 4), 4 * HEADS * HEAD
    model = Lumina2(
        Lumina2Config(SIDE, 2, CHANNELS, CHANNELS, HEADS, KV_HEADS, HEAD, 2, 1, GEMMA_WIDTH, mlp, axes)
    ).eval()
    model.load_state_dict(our_names(reference.state_dict()))
    random = torch.Generator().manual_seed(1)
    x, rows = (torch.randn(3, *shape, generator=random) for shape in ((CHANNELS, 10, 14), (9, GEMMA_WIDTH)))
    timestep, mask = torch.tensor([1000.0, 500.0, 3.0]), (torch.arange(9) < torch.tensor([[5], [9], [2]])).long()
    expected = reference(x, 1 - timestep / 1000, rows, mask).sample
    context, bias = model.context(rows, mask)
    position = model.position(torch.arange(5.0), torch.arange(7.0))
    found = -model.trunk(x, model.conditioner(timestep), context, bias, torch.arange(3), position)
    assert relative_error(found.numpy(), expected.numpy()) < 1e-6


def test_what_guidance_makes_is_as_long_as_what_it_leads_to() -> None:
    """Rows of two images, the second of them unguided."""
    random = torch.Generator().manual_seed(1)
    towards, away, alone = torch.randn(3, 4, 6, 8, generator=random)
    combine = torch.zeros(2, 3, 4)
    combine[0, 0], combine[0, 1], combine[1, 2] = 4.0, -3.0, 1.0
    output = torch.stack([towards, away, alone])
    found = renormalised((combine[..., None, None] * output).sum(dim=1), output, combine)
    guided = away + 4.0 * (towards - away)
    expected = guided * (torch.norm(towards, dim=-1, keepdim=True) / torch.norm(guided, dim=-1, keepdim=True))
    assert relative_error(found[0].numpy(), expected.numpy()) < 1e-6
    assert relative_error(found[1].numpy(), alone.numpy()) < 1e-6


def test_how_its_pipeline_is_read(tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline

    lumina2_transformer().save_pretrained(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text('{"_class_name": "Lumina2Pipeline"}')
    FlowMatchEulerDiscreteScheduler(shift=5.0).save_pretrained(tmp_path / "scheduler")
    checkpoint = read(tmp_path)
    process, (use,) = checkpoint.process, checkpoint.encoders
    assert process.flow is not None and (process.flow.shift, process.flow.spacing) == (5.0, "even")
    assert (process.steps, process.guidance, use.layer, use.info.tokens) == (30, 4.0, -2, 256)
    assert Lumina2Pipeline(None, None, None, None, None).system_prompt + " <Prompt Start> " == INSTRUCTION
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(tmp_path / "scheduler")
    with pytest.raises(CheckpointError, match="'use_dynamic_shifting' is true: Lumina2Pipeline makes the same shift"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_kv_heads": 3}, "'num_attention_heads' 4 is not a multiple of 'num_kv_heads' 3"),
        ({"axes_dim_rope": [4, 4, 2]}, "'axes_dim_rope' is not three even numbers that add up to the size of a head"),
        ({"axes_lens": [256, 512, 512]}, "'axes_lens' has less places than prompts and pictures need"),
        ({"multiple_of": 5}, r"feed_forward.w1.weight' has shape \[192, 48\], expected \[195, 48\]"),
        ({"ffn_dim_multiplier": -1.0}, "'ffn_dim_multiplier' is '-1.0', not a number between 0 and 64"),
        ({"num_layers": 3}, "key 'layers.2.attention"),
    ],
)
def test_what_is_not_read(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    lumina2_transformer().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(CheckpointError, match=sentence):
        read(tmp_path)
