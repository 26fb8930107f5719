"""diffusers' state dict of a DiT under facebookresearch/DiT's names."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...runtime.errors import CheckpointError
from ..networks.dit import DiT, DiTConfig
from .checkpoint import misfit, raise_misfits

EMBEDDERS = {  # copies in every block, under `transformer_blocks.{i}.norm1.emb.`
    "t_embedder.mlp.0.weight": "timestep_embedder.linear_1.weight",
    "t_embedder.mlp.0.bias": "timestep_embedder.linear_1.bias",
    "t_embedder.mlp.2.weight": "timestep_embedder.linear_2.weight",
    "t_embedder.mlp.2.bias": "timestep_embedder.linear_2.bias",
    "y_embedder.embedding_table.weight": "class_embedder.embedding_table.weight",
}
BLOCK = {  # ours -> theirs, under `blocks.{i}.` and `transformer_blocks.{i}.`; several are concatenated
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
    "adaLN_modulation.1": ("norm1.linear",),
}
ENDS = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}


def with_our_names(state: dict[str, Tensor], config: DiTConfig) -> tuple[DiTConfig, dict[str, Tensor]]:
    """diffusers' state dict -> facebookresearch/DiT's, and whether its blocks have embedders of their own.

    Every tensor is used, and checked under its own name. Models that were converted to diffusers have one embedder,
    with a copy in each block; training there changes every copy by itself. Raises CheckpointError.
    """
    if config.depth > len(state):  # before a network of a million blocks is built to compare with
        raise CheckpointError(f"{len(state)} tensors are too few for the {config.depth} blocks of 'num_layers'")
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in DiT(config).state_dict().items() if key != "pos_embed"}
    rest, ours, problems = dict(state), {}, []
    for key, sources in _sources(config.depth).items():
        rows, *others = shapes[key]
        wrong = [misfit(rest, source, (rows // len(sources), *others)) for source in sources]
        problems += [problem for problem in wrong if problem]
        parts = [rest.pop(source) for source in sources if source in rest]
        if not any(wrong):
            ours[key] = torch.cat(parts) if len(parts) > 1 else parts[0]
    copies: dict[str, Tensor] = {}  # of the blocks after the first
    for i in range(1, config.depth):
        for key, name in EMBEDDERS.items():
            copy = f"transformer_blocks.{i}.norm1.emb.{name}"
            problem = misfit(rest, copy, shapes[key])
            problems += [problem] if problem else []
            if copy in rest:
                copies[f"block_embedders.{i - 1}.{key}"] = rest.pop(copy)
    raise_misfits(problems + [f"key '{key}' is not part of a diffusers DiT" for key in rest])
    if all(torch.equal(tensor, ours[key.split(".", 2)[2]]) for key, tensor in copies.items()):
        return config, ours
    return replace(config, block_embedders=True), ours | copies


def _sources(depth: int) -> dict[str, tuple[str, ...]]:
    """Our key -> the keys of diffusers that it is made of."""
    sources: dict[str, tuple[str, ...]]
    sources = {key: (f"transformer_blocks.0.norm1.emb.{name}",) for key, name in EMBEDDERS.items()}
    for kind in ("weight", "bias"):
        sources |= {f"{key}.{kind}": (f"{name}.{kind}",) for key, name in ENDS.items()}
        for i in range(depth):
            for key, names in BLOCK.items():
                sources[f"blocks.{i}.{key}.{kind}"] = tuple(f"transformer_blocks.{i}.{n}.{kind}" for n in names)
    return sources
