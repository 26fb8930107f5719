"""The weights that a PixArt begins its training with: those of a class-conditional DiT (arXiv:2310.00426, 2.3).

Self-attention, MLPs and embedders are taken over; adaLN becomes adaLN-single; cross-attention begins with an output of
zero.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from fashion_mnist import IMAGE_SIZE
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ditedge.export.networks.dit import DiT, DiTConfig
from ditedge.export.networks.pixart import PixArt

TIMESTEPS = 1000


@torch.no_grad()
def initialize(model: PixArt, start: Path) -> None:
    """model: of the size of the class-conditional DiT whose .safetensors file is `start`."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for block in model.transformer_blocks:
        nn.init.zeros_(block.attn2.to_out[0].weight)
    dit = {name: tensor.float() for name, tensor in load_file(start).items()}
    for name, values in taken_over(dit, model.config.depth).items():
        model.get_parameter(name).copy_(values)
    # The null class is part of the embedding from now on.
    model.adaln_single.emb.timestep_embedder.linear_2.bias.add_(dit["y_embedder.embedding_table.weight"][-1])
    set_modulation(model, dit)


def read_teacher(start: Path) -> DiT:
    """The class-conditional DiT itself."""
    weights = {name: tensor.float() for name, tensor in load_file(start).items()}
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    classes, width = weights["y_embedder.embedding_table.weight"].shape
    patch = weights["x_embedder.proj.weight"].shape[-1]
    model = DiT(DiTConfig(IMAGE_SIZE, patch, 1, width, depth, width // 64, num_classes=classes - 1))
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def taken_over(dit: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Parameters by PixArt's names. Of the final rows, those of the variance are left out."""
    names = {"pos_embed.proj": "x_embedder.proj"}
    names |= {f"adaln_single.emb.timestep_embedder.linear_{i + 1}": f"t_embedder.mlp.{2 * i}" for i in range(2)}
    found = {}
    for i in range(depth):
        ours, theirs = f"transformer_blocks.{i}", f"blocks.{i}"
        names |= {f"{ours}.attn1.to_out.0": f"{theirs}.attn.proj", f"{ours}.ff.net.0.proj": f"{theirs}.mlp.fc1"}
        names |= {f"{ours}.ff.net.2": f"{theirs}.mlp.fc2"}
        for kind in ("weight", "bias"):
            parts = dit[f"{theirs}.attn.qkv.{kind}"].chunk(3)
            found |= {f"{ours}.attn1.to_{name}.{kind}": part for name, part in zip("qkv", parts, strict=True)}
    for kind in ("weight", "bias"):
        found |= {f"{ours}.{kind}": dit[f"{theirs}.{kind}"] for ours, theirs in names.items()}
        found[f"proj_out.{kind}"] = dit[f"final_layer.linear.{kind}"].unflatten(0, (-1, 2))[:, 0]
    return found


def set_modulation(model: PixArt, dit: dict[str, Tensor]) -> None:
    """adaLN-single that is, averaged over timesteps, each block's own adaLN of the null class."""
    width, depth = model.config.hidden_size, model.config.depth
    names = [*(f"blocks.{i}" for i in range(depth)), "final_layer"]
    *rows, last = [tuple(dit[f"{name}.adaLN_modulation.1.{kind}"] for kind in ("weight", "bias")) for name in names]
    embedded = model.adaln_single.emb(torch.arange(TIMESTEPS).float(), None, None)
    active, shared = nn.functional.silu(embedded), model.adaln_single.linear
    shared.weight.copy_(torch.stack([weight for weight, _ in rows]).mean(0))
    for block, (weight, bias) in zip(model.transformer_blocks, rows, strict=True):
        wanted = (active @ weight.T + bias).mean(0) - shared(active).mean(0)
        block.scale_shift_table.copy_(wanted.view(6, width))
    final = (active @ last[0].T + last[1]).mean(0) - embedded.mean(0).repeat(2)
    model.scale_shift_table.copy_(final.view(2, width))
