"""Reading FLUX.1 dev or schnell: a diffusers pipeline folder, or a transformer folder alone."""

from __future__ import annotations

from pathlib import Path

from ...runtime.bundle.text_info import EncoderInfo
from ...runtime.samplers.flow_settings import FlowInfo, SizeShift
from ..networks.flux import PACKED, Flux, FluxConfig
from .config_values import are_axes, check_none, count
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

GUIDANCE = 3.5  # of FluxPipeline
STEPS = {True: 28, False: 4}  # dev, which is told its guidance, and schnell, as their model cards sample them
TOKENS = {True: 512, False: 256}  # of T5; schnell was distilled with 256
CLIP_TOKENS = 77
SIDE = 128  # of the latents of training, where no VAE says it: FluxPipeline's default_sample_size
LARGEST = 2  # times it
SHIFTS = {
    True: FlowInfo(by_size=SizeShift(base_tokens=256, base_mu=0.5, most_tokens=4096, most_mu=1.15)),
    False: FlowInfo(),
}
MAX_WIDTH, MAX_DEPTH, MAX_HEAD = 1 << 14, 1 << 8, 1 << 10
DEFAULTS = {
    "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
}  # fmt: skip
AXES = (16, 56, 56)


def read_flux(path: Path) -> PromptCheckpoint:
    """Raises CheckpointError naming file and key."""
    folder = open_folder(path)
    config: FluxConfig = config_of(folder, _config)
    told = config.told_guidance
    found = read_weights(folder, lambda: Flux(config), "FLUX.1")
    flow = read_flow(folder.scheduler_file, SHIFTS[told])
    clip = EncoderInfo(tokens=CLIP_TOKENS, width=None, pooled=config.pooled_channels, masked=False)
    t5 = EncoderInfo(tokens=config.tokens, width=config.caption_channels, masked=False)
    kind, guidance = ("embedded", GUIDANCE) if told else ("none", 1.0)
    said = f"guidance: a number that the network is told, {GUIDANCE} by default" if told else "guidance: none"
    return PromptCheckpoint(
        architecture="flux",
        network=Flux,
        config=config,
        largest=LARGEST * config.sample_size,
        weights=found.tensors,
        sha256=found.sha256,
        folder=folder.path,
        process=Process("flow", (float(flow.trained), 0.0), flow=flow, steps=STEPS[told], guidance=guidance, kind=kind),
        encoders=(
            EncoderUse("text_encoder", "tokenizer", clip),
            EncoderUse("text_encoder_2", "tokenizer_2", t5),
        ),
        notes=(f"weights: {found.sentence}", f"text: {config.tokens} tokens of T5", said),
        facts={"mlp_norm_eps": 1e-6},
    )


def _config(folder: PromptFolder) -> FluxConfig:
    values = folder.values
    heads, head = (
        count(values, DEFAULTS, "num_attention_heads"),
        count(values, DEFAULTS, "attention_head_dim", MAX_HEAD),
    )
    joint, single = (count(values, DEFAULTS, key, MAX_DEPTH) for key in ("num_layers", "num_single_layers"))
    packed, axes = count(values, DEFAULTS, "in_channels"), values.get("axes_dims_rope", AXES)
    outputs = packed if values.get("out_channels") is None else count(values, {"out_channels": packed}, "out_channels")
    told = values.get("guidance_embeds", False)
    problems = {
        f"the width {heads * head} is above {MAX_WIDTH}": heads * head > MAX_WIDTH,
        f"'patch_size' is {str(values.get('patch_size', 1))[:40]}: FLUX.1 has 1": values.get("patch_size", 1) != 1,
        f"'in_channels' {packed} is not a multiple of {PACKED**2}, which latents are packed by": packed % PACKED**2,
        f"'out_channels' is {outputs}: expected {packed}": outputs != packed,
        "'axes_dims_rope' is not three even numbers that add up to 'attention_head_dim'": not are_axes(axes, head),
        "'guidance_embeds' is neither true nor false": not isinstance(told, bool),
    }
    check_none(problems)
    return FluxConfig(
        sample_size=folder.trained_side(SIDE, PACKED),
        in_channels=packed // PACKED**2,
        out_channels=outputs // PACKED**2,
        num_heads=heads,
        head_size=head,
        joint_depth=joint,
        single_depth=single,
        caption_channels=count(values, DEFAULTS, "joint_attention_dim"),
        pooled_channels=count(values, DEFAULTS, "pooled_projection_dim"),
        axes=tuple(axes),
        told_guidance=told,
        tokens=TOKENS[told],
    )
