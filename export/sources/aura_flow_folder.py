"""Reading AuraFlow: a diffusers pipeline folder, or a transformer folder alone."""

from __future__ import annotations

import math
from pathlib import Path

from ...runtime.bundle.text_info import EncoderInfo
from ...runtime.samplers.flow_settings import FlowInfo
from ..networks.aura_flow import AuraFlow, AuraFlowConfig
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

GUIDANCE, STEPS, SHIFT = 3.5, 50, 1.73  # of AuraFlowPipeline, and of its released scheduler
MAX_WIDTH, MAX_DEPTH, MAX_POSITIONS = 1 << 14, 1 << 8, 1 << 20
DEFAULTS = {
    "sample_size": 64, "patch_size": 2, "in_channels": 4, "num_mmdit_layers": 4, "num_single_dit_layers": 32,
    "attention_head_dim": 256, "num_attention_heads": 12, "joint_attention_dim": 2048, "caption_projection_dim": 3072,
    "out_channels": 4, "pos_embed_max_size": 1024,
}  # fmt: skip


def read_aura_flow(path: Path) -> PromptCheckpoint:
    """Raises CheckpointError naming file and key."""
    folder = open_folder(path)
    config: AuraFlowConfig = config_of(folder, _config)
    found = read_weights(folder, lambda: AuraFlow(config), "AuraFlow")
    flow = read_flow(folder.scheduler_file, FlowInfo(shift=SHIFT, spacing="trained"))
    info = EncoderInfo(tokens=config.tokens, width=config.caption_channels)
    return PromptCheckpoint(
        architecture="aura-flow",
        network=AuraFlow,
        config=config,
        largest=config.position_size * config.patch_size,
        weights=found.tensors,
        sha256=found.sha256,
        folder=folder.path,
        process=Process("flow", (float(flow.trained), 0.0), flow=flow, steps=STEPS, guidance=GUIDANCE),
        encoders=(EncoderUse("text_encoder", "tokenizer", info),),
        notes=(f"weights: {found.sentence}", f"text: {config.tokens} tokens of a prompt"),
        facts={"mlp_norm_eps": 1e-5},
    )


def _config(folder: PromptFolder) -> AuraFlowConfig:
    values = folder.values
    heads, head, channels, patch, size, joint = (
        count(values, DEFAULTS, key, MAX_WIDTH)
        for key in (
            *("num_attention_heads", "attention_head_dim", "in_channels", "patch_size", "sample_size"),
            "joint_attention_dim",
        )
    )
    outputs = channels if values.get("out_channels", 4) is None else count(values, DEFAULTS, "out_channels")
    positions = count(values, DEFAULTS, "pos_embed_max_size", MAX_POSITIONS)
    side = math.isqrt(positions)
    problems = {
        f"the width {heads * head} is above {MAX_WIDTH}": heads * head > MAX_WIDTH,
        "'caption_projection_dim' is not the width": count(values, DEFAULTS, "caption_projection_dim") != heads * head,
        f"'out_channels' is {outputs}: expected {channels}": outputs != channels,
        f"'sample_size' {size} is not a multiple of 'patch_size' {patch}": size % patch,
        f"'pos_embed_max_size' {positions} is not a square with room for a picture of training": side**2 != positions
        or size > side * patch,
    }
    check_none(problems)
    return AuraFlowConfig(
        sample_size=size,
        patch_size=patch,
        in_channels=channels,
        out_channels=outputs,
        num_heads=heads,
        head_size=head,
        joint_depth=count(values, DEFAULTS, "num_mmdit_layers", MAX_DEPTH),
        single_depth=count(values, DEFAULTS, "num_single_dit_layers", MAX_DEPTH),
        caption_channels=joint,
        position_size=side,
    )
