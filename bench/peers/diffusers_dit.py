"""The transformer of diffusers' DiTPipeline with the same weights."""

from __future__ import annotations

from typing import Any

import torch

from ditedge.export.sources.diffusers_weights import BLOCK, EMBEDDERS, ENDS

from . import Evaluate, Output, Task


def make(task: Task, variant: str) -> Evaluate:
    from diffusers import DiTTransformer2DModel

    config, (x, timestep, label) = task.model.config, task.inputs
    model = DiTTransformer2DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.hidden_size // config.num_heads,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=config.depth,
        sample_size=config.input_size,
        patch_size=config.patch_size,
        num_embeds_ada_norm=config.num_classes,
        norm_eps=config.mlp_norm_eps,
    )
    model.load_state_dict(with_their_names(task.model.state_dict(), config.depth), strict=True)
    for block in model.transformer_blocks:  # facebookresearch/DiT's frequencies where the weights are for those
        block.norm1.emb.time_proj.downscale_freq_shift = 128 - config.frequency_divisor
    model.eval().requires_grad_(False)

    @torch.no_grad()
    def evaluate() -> Output:
        return model(x, timestep=timestep.long(), class_labels=label).sample

    return evaluate


def with_their_names(ours: dict[str, Any], depth: int) -> dict[str, Any]:
    """facebookresearch/DiT's state dict under diffusers' names."""
    theirs = {}
    for kind in ("weight", "bias"):
        for key, name in ENDS.items():
            theirs[f"{name}.{kind}"] = ours[f"{key}.{kind}"]
        for i in range(depth):
            for key, names in BLOCK.items():
                parts = ours[f"blocks.{i}.{key}.{kind}"].chunk(len(names))
                theirs |= {f"transformer_blocks.{i}.{n}.{kind}": part for n, part in zip(names, parts, strict=True)}
    for i in range(depth):
        theirs |= {f"transformer_blocks.{i}.norm1.emb.{name}": ours[key] for key, name in EMBEDDERS.items()}
    return theirs
