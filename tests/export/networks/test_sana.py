"""Sana's transformer against diffusers' class, in each of its forms."""

from __future__ import annotations

import pytest
import torch

from ditedge.export.networks.sana import Sana, SanaConfig
from ditedge.runtime.loop.verify import relative_error
from tests.export.sana_pipelines import SIDE, small_sana

FORMS: dict[str, tuple[dict, dict]] = {
    "Sana": ({}, {}),
    "Sana 1.5": (
        {"qk_norm": "rms_norm_across_heads", "attention_bias": True},
        {"qk_norm": True, "attention_bias": True},
    ),
    "Sprint": ({"qk_norm": "rms_norm_across_heads", "guidance_embeds": True}, {"qk_norm": True, "guided": True}),
    "2K": ({"interpolation_scale": 2, "patch_size": 2}, {"interpolation_scale": 2.0, "patch_size": 2}),
}


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_the_network_is_diffusers_own(form: str) -> None:
    theirs, ours = FORMS[form]
    reference, patch = small_sana(**theirs), ours.get("patch_size", 1)
    model = Sana(SanaConfig(SIDE, **{"patch_size": 1} | ours, in_channels=4, out_channels=4, num_heads=4, head_size=8, depth=2,
                            cross_heads=2, cross_head_size=16, caption_channels=16))  # fmt: skip
    names = {key.replace("time_embed.emb.", "time_embed."): value for key, value in reference.state_dict().items()}
    model.load_state_dict(names)
    generator = torch.Generator().manual_seed(1)
    x, hidden = torch.randn(3, 4, 8, 12, generator=generator), torch.randn(3, 7, 16, generator=generator)
    timestep, mask = torch.tensor([1.0, 500.0, 999.0]), torch.ones(3, 7, dtype=torch.int64)
    mask[1, 3:] = 0
    guidance = torch.tensor([4.5, 1.0, 2.0]) if model.config.guided else None
    scaled = None if guidance is None else 0.1 * guidance  # as its pipeline does
    expected = reference(x, hidden, timestep, guidance=scaled, encoder_attention_mask=mask).sample
    position = model.position(torch.arange(8.0 / patch), torch.arange(12.0 / patch))
    has_position = model.config.interpolation_scale is not None
    modulation, context = model.conditioner(timestep, guidance), model.context(hidden, mask)
    found = model.trunk(x, modulation, *context, torch.arange(3), position if has_position else None)
    assert relative_error(found.numpy(), expected.numpy()) < 1e-6  # measured: 2.8e-7
