"""MaskDiT's checkpoints: EDM around a DiT with a decoder (docs/sources.md).

Known by `decoder_layer.`; without a decoder by its label table, a linear layer's, which lies the other way than DiT's:
[width, classes], and no class is a row of zeros.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from ...runtime.errors import CheckpointError
from ..networks.dit import sincos_position_embedding
from ..networks.maskdit import DECODER_HEADS, MaskConfig
from .asked import Asked
from .family import Described, check_said, left_out, refuse_keys
from .settings import Settings
from .shapes import config_from_shapes

TABLE, LAYER, POSITIONS, DECODER = (
    "y_embedder.embedding_table.weight",
    "decoder_layer.",
    "decoder_pos_embed",
    "decoder_blocks",
)
VARIANTS = {
    "cls_token": "pad_cls_token",
    "feat_embedder": "ext_feature_dim",
    "enc_feat_embedder": "use_encoder_feat (self_cond)",
}
STEPS = 18  # of its sample.py; generate.py's are 40


def read(state: dict[str, Tensor], settings: Settings, asked: Asked) -> Described | None:
    """None where the keys are another family's. Raises CheckpointError naming the key, or the setting."""
    decoder = any(key.startswith(LAYER) for key in state)
    if not decoder and not _lies_across(state) and settings.values.get("precond") != "edm":
        return None
    refuse_keys(state, VARIANTS, "MaskDiT")
    check_said(settings, {"use_decoder": decoder, "precond": "edm"})
    tensors, _ = left_out(state, "mask_token")
    if TABLE not in tensors or tensors[TABLE].ndim != 2:
        raise CheckpointError(f"key '{TABLE}' is missing, or no matrix: MaskDiT without classes is not supported")
    dropout = settings.values.get("class_dropout_prob", 0.1) > 0 and asked.null_class is not False
    rows = tensors[TABLE].T
    tensors[TABLE] = torch.cat([rows, torch.zeros_like(rows[:1])]) if dropout else rows.contiguous()
    inside = {key: value for key, value in tensors.items() if not key.startswith("decoder_")}
    config, said = config_from_shapes(inside, settings, replace(asked, null_class=dropout))
    if config.learn_sigma:
        raise CheckpointError(
            "key 'final_layer.linear.weight': MaskDiT with learn_sigma is not supported, nor by its EDM"
        )
    depth, width = _decoder(tensors) if decoder else (0, 512)
    found = MaskConfig(**vars(replace(config, depth=config.depth + depth)), decoder_depth=depth, decoder_size=width)
    if decoder and POSITIONS not in tensors:
        tensors[POSITIONS] = sincos_position_embedding(found.decoder)
    return Described(
        {_numbered(key, config.depth): value for key, value in tensors.items()},
        found,
        said.replace("(--null-class)", "(a row of zeros)"),
        prediction="edm",
        guided_channels=config.in_channels,
        sampling={"sampler": "edm-heun", "steps": STEPS},
        notes=(f"sampling: EDM's Heun in {STEPS} steps (of its sample.py)",),
    )


def _lies_across(state: dict[str, Tensor]) -> bool:
    """Whether the label table is [width, classes]."""
    table, image = state.get(TABLE), state.get("x_embedder.proj.weight")
    if table is None or image is None or table.ndim != 2 or image.ndim != 4:
        return False
    return table.shape[0] == image.shape[0] != table.shape[1]


def _decoder(tensors: dict[str, Tensor]) -> tuple[int, int]:
    """Its blocks, and its width."""
    blocks = {key.split(".")[1] for key in tensors if key.startswith(f"{DECODER}.")}
    linear = tensors.get(f"{LAYER}linear.weight")
    if not blocks or linear is None or linear.ndim != 2 or not linear.shape[0] or linear.shape[0] % DECODER_HEADS:
        raise CheckpointError(
            f"key '{LAYER}linear.weight' is missing, or not to a width of {DECODER_HEADS} heads, or no '{DECODER}.'"
        )
    return len(blocks), int(linear.shape[0])


def _numbered(key: str, before: int) -> str:
    found = re.fullmatch(rf"{DECODER}\.(\d{{1,9}})\.(.+)", key)
    return f"blocks.{before + int(found[1])}.{found[2]}" if found else key
