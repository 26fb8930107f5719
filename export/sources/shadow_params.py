"""Averages that were saved without their parameters' names: lists, and names that lost their dots."""

from __future__ import annotations

from torch import Tensor

from .tensor_tree import is_average

INNER = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")


def named_list(tensors: list[Tensor], raw: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """`shadow_params` of torch_ema and diffusers: a list in the order of the module's parameters, named; None: no DiT.

    raw: the state dict beside it, whose order is that of the parameters; None: facebookresearch/DiT's order is taken.
    A list without the fixed `pos_embed` holds what is trained.
    """
    names = list(raw) if raw is not None else ["pos_embed", *_parameters((len(tensors) - 11) // 10)]
    if len(names) == len(tensors) + 1:
        names = [name for name in names if name != "pos_embed"]
    if len(names) != len(tensors):
        return None
    named = dict(zip(names, tensors, strict=True))
    fits = raw is None or all(raw[name].shape == tensor.shape for name, tensor in named.items())
    return named if fits else None


def _parameters(depth: int) -> list[str]:
    """The trained parameters of facebookresearch/DiT, in the order of its module."""

    def both(*linears: str) -> list[str]:
        return [f"{linear}.{part}" for linear in linears for part in ("weight", "bias")]

    blocks = both(*(f"blocks.{i}.{name}" for i in range(depth) for name in INNER))
    embedders = [*both("x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2"), "y_embedder.embedding_table.weight"]
    return [*embedders, *blocks, *both("final_layer.linear", "final_layer.adaLN_modulation.1")]


def undotted(beside: dict[str, Tensor], prefix: str, raw: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]] | None:
    """latent-diffusion's LitEma: a buffer for each parameter, `model_ema.` and the name as `model` knows it, no dots.

    beside: all tensors of the dict that has `raw` under `prefix`. -> the owner of the buffers, and their state dict.
    """
    owners = {key.rpartition(".")[0] for key in beside}
    parts = prefix.split(".")
    for owner in sorted(owner for owner in owners if is_average([owner])):
        for start in range(len(parts)):
            tail = ".".join(parts[start:])
            keys = {name: f"{owner}.{(tail + name).replace('.', '')}" for name in raw}
            state = {name: beside[key] for name, key in keys.items() if key in beside}
            if len(state) >= len(raw) - 1 and len(state) > 0:  # all but the fixed pos_embed
                return owner, state
    return None
