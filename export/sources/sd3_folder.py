"""Reading Stable Diffusion 3 or 3.5: a diffusers pipeline folder, or a transformer folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...runtime.bundle.text_info import EncoderInfo
from ...runtime.errors import CheckpointError
from ...runtime.samplers.flow_settings import FlowInfo
from ..networks.sd3 import SD3, SD3Config
from .config_values import check_none, count
from .flow_scheduler import read_flow
from .prompt_checkpoint import (
    EncoderUse,
    Process,
    PromptCheckpoint,
    PromptFolder,
    config_of,
    open_folder,
    read_weights,
)

GUIDANCE, STEPS, SHIFT = 7.0, 28, 3.0  # of StableDiffusion3Pipeline, and of its released schedulers
T5_TOKENS = 256  # `max_sequence_length`
CLIP_TOKENS, CLIP_WIDTHS = 77, (768, 1280)  # of CLIP-L and CLIP-G, where no pipeline says them
TABLE = "pos_embed.pos_embed"  # [1, side^2, D]: columns in the first half of a row, rows in the second
MAX_WIDTH, MAX_DEPTH, MAX_POSITIONS = 1 << 14, 1 << 8, 1 << 10
DEFAULTS = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "num_layers": 18, "attention_head_dim": 64,
    "num_attention_heads": 18, "joint_attention_dim": 4096, "caption_projection_dim": 1152,
    "pooled_projection_dim": 2048, "out_channels": 16, "pos_embed_max_size": 96,
}  # fmt: skip


def read_sd3(path: Path) -> PromptCheckpoint:
    """Raises CheckpointError naming file and key."""
    folder = open_folder(path)
    config: SD3Config = config_of(folder, _config)
    found = read_weights(folder, lambda: SD3(config), "Stable Diffusion 3", lambda own: _with_table(own, config))
    flow = read_flow(folder.scheduler_file, FlowInfo(shift=SHIFT, spacing="trained"))
    absent = "" if config.has_t5 else ", without T5 (zeros stand for its rows)"
    return PromptCheckpoint(
        architecture="sd3",
        network=SD3,
        config=config,
        largest=config.position_size * config.patch_size,
        weights=found.tensors,
        sha256=found.sha256,
        folder=folder.path,
        process=Process("flow", (float(flow.trained), 0.0), flow=flow, steps=STEPS, guidance=GUIDANCE),
        encoders=_encoders(config),
        notes=(f"weights: {found.sentence}", f"text: {config.clip_tokens} tokens of CLIP{absent}"),
        facts={"mlp_norm_eps": 1e-6},
    )


def _encoders(config: SD3Config) -> tuple[EncoderUse, ...]:
    uses = [
        EncoderUse(
            f"text_encoder{suffix}",
            f"tokenizer{suffix}",
            EncoderInfo(tokens=config.clip_tokens, width=width, pooled=pooled, masked=False),
            layer=-2,
        )
        for suffix, width, pooled in zip(("", "_2"), config.clip_channels, config.pooled_of_clip, strict=True)
    ]
    t5 = EncoderInfo(tokens=config.t5_tokens, width=config.caption_channels, masked=False)
    return (*uses, EncoderUse("text_encoder_3", "tokenizer_3", t5)) if config.has_t5 else tuple(uses)


def _config(folder: PromptFolder) -> SD3Config:
    values = folder.values
    heads, head, depth = (
        count(values, DEFAULTS, key, MAX_DEPTH if key == "num_layers" else MAX_WIDTH)
        for key in ("num_attention_heads", "attention_head_dim", "num_layers")
    )
    channels, patch, size = (count(values, DEFAULTS, key) for key in ("in_channels", "patch_size", "sample_size"))
    outputs = channels if values.get("out_channels", 16) is None else count(values, DEFAULTS, "out_channels")
    joint, pooled = (count(values, DEFAULTS, key) for key in ("joint_attention_dim", "pooled_projection_dim"))
    positions = count(values, DEFAULTS, "pos_embed_max_size", MAX_POSITIONS)
    dual, norm = values.get("dual_attention_layers", ()), values.get("qk_norm")
    (widths, pools), clip_tokens, has_t5 = _of_clip(folder, pooled)
    problems = {
        f"the width {heads * head} is not an even number of at most {MAX_WIDTH}": heads * head % 2
        or heads * head > MAX_WIDTH,
        "'caption_projection_dim' is not the width": count(values, DEFAULTS, "caption_projection_dim") != heads * head,
        f"'out_channels' is {outputs}: expected {channels}": outputs != channels,
        f"'sample_size' {size} is not a multiple of 'patch_size' {patch}": size % patch,
        f"'pos_embed_max_size' {positions} is less than a picture of training has patches": size > positions * patch,
        f"'qk_norm' is {str(norm)[:40]!r}: null and 'rms_norm' are read": norm not in (None, "rms_norm"),
        "'dual_attention_layers' is not a list of blocks": not isinstance(dual, list | tuple)
        or any(type(block) is not int or not 0 <= block < depth for block in dual),
        f"the text encoders' pooled rows have {sum(pools)} numbers, 'pooled_projection_dim' is {pooled}": sum(pools)
        != pooled,
        f"the two CLIPs' rows have {sum(widths)} numbers, 'joint_attention_dim' is {joint}": sum(widths) > joint,
    }
    check_none(problems)
    return SD3Config(
        sample_size=size,
        patch_size=patch,
        in_channels=channels,
        out_channels=outputs,
        num_heads=heads,
        head_size=head,
        depth=depth,
        caption_channels=joint,
        pooled_channels=pooled,
        position_size=positions,
        dual_layers=tuple(dual),
        qk_norm=norm is not None,
        clip_channels=widths,
        pooled_of_clip=pools,
        clip_tokens=clip_tokens,
        t5_tokens=T5_TOKENS,
        has_t5=has_t5,
    )


Pair = tuple[int, int]


def _of_clip(folder: PromptFolder, pooled: int) -> tuple[tuple[Pair, Pair], int, bool]:
    """Widths of both CLIPs' rows and pooled rows, their tokens, and whether T5 is there.

    Without text encoders they are those of CLIP-L and CLIP-G, which a released checkpoint was trained with.
    """
    parts = [folder.part(name) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
    if parts[0] is None or parts[1] is None:
        return (CLIP_WIDTHS, CLIP_WIDTHS), CLIP_TOKENS, parts[2] is not None or not folder.index
    defaults = {"hidden_size": 512, "projection_dim": 512, "max_position_embeddings": CLIP_TOKENS}
    widths, pools = (
        (count(parts[0], defaults, key), count(parts[1], defaults, key)) for key in ("hidden_size", "projection_dim")
    )
    tokens = count(parts[0], defaults, "max_position_embeddings", 1 << 12)
    return (widths, pools), tokens, parts[2] is not None


def _with_table(tensors: dict[str, Tensor], config: SD3Config) -> dict[str, Tensor]:
    """The table of positions as one of rows and one of columns, of which it is made. Raises CheckpointError."""
    side, width = config.position_size, config.hidden_size
    table: Any = tensors.pop(TABLE, None)
    if table is None or tuple(table.shape) != (1, side**2, width):
        found = "is missing" if table is None else f"has shape {list(table.shape)}"
        raise CheckpointError(f"key '{TABLE}' {found}, expected {[1, side**2, width]}")
    grid = table.reshape(side, side, width)
    columns, rows = grid[0, :, : width // 2], grid[:, 0, width // 2 :]
    made = torch.cat([columns[None].expand(side, -1, -1), rows[:, None].expand(-1, side, -1)], dim=2)
    if not torch.equal(made, grid):
        raise CheckpointError(f"key '{TABLE}' is no table of rows and of columns, as a sinusoid is: not read so far")
    return tensors | {"pos_embed.rows": rows.contiguous(), "pos_embed.columns": columns.contiguous()}
