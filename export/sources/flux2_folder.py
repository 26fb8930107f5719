"""Reading FLUX.2 klein, distilled or base, or dev: a diffusers pipeline folder, or a transformer folder alone."""

from __future__ import annotations

from pathlib import Path

from ...runtime.bundle.text_info import EncoderInfo
from ...runtime.errors import CheckpointError
from ...runtime.samplers.flow_settings import FewSteps, FlowInfo, SizeShift
from ..networks.flux2 import Flux2, Flux2Config
from .config_values import above, are_axes, check_fixed, check_none, count
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

GUIDANCE, STEPS = 4.0, 50  # of both pipelines
DISTILLED_STEPS = 4  # as klein's model card samples it
TOKENS = 512  # `max_sequence_length`
LAYERS = (9, 18, 27)  # of Qwen3's hidden states, which are read beside each other
AROUND = (
    "<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
)  # its template: no thinking
SIDE, PACKED, LARGEST = 128, 2, 2  # of the VAE's latents of training; of their squares; times that
FACTOR = 8 * PACKED
KLEIN, DEV = ("Flux2KleinPipeline", "Flux2KleinInpaintPipeline"), ("Flux2Pipeline",)
# `compute_empirical_mu`: slope and start of mu over image tokens, of 200 steps and of 10, up to 4,300 tokens
MANY, FEW = (0.00016927, 0.45666666), (8.73809524e-05, 1.89833333)
BASE, MOST = 256, 4300
# What the class leaves open, and the only value that is read; defaults are those of diffusers 0.42.
FIXED = {"patch_size": 1, "timestep_guidance_channels": 256}
MAX_WIDTH, MAX_DEPTH, MAX_HEAD = 1 << 14, 1 << 8, 1 << 10
DEFAULTS = {
    "in_channels": 128, "num_layers": 8, "num_single_layers": 48, "attention_head_dim": 128, "num_attention_heads": 48,
    "joint_attention_dim": 15360,
}  # fmt: skip
AXES = (32, 32, 32, 32)


def read_flux2(path: Path) -> PromptCheckpoint:
    """Raises CheckpointError naming file and key."""
    folder = open_folder(path)
    distilled = _distilled(folder)
    config: Flux2Config = config_of(folder, _config)
    told = config.told_guidance
    found = read_weights(folder, lambda: Flux2(config), "FLUX.2")
    kind, steps, guidance, said = (
        ("embedded", STEPS, GUIDANCE, f"dev, which is told its guidance, {GUIDANCE:g}")
        if told
        else ("none", DISTILLED_STEPS, 1.0, "klein, distilled: no guidance")
        if distilled
        else ("true", STEPS, GUIDANCE, f"klein, base, as nothing says 'is_distilled': guidance {GUIDANCE:g}")
    )
    flow = _flow(folder)
    info = EncoderInfo(tokens=config.tokens, width=config.caption_channels, masked=False)
    return PromptCheckpoint(
        architecture="flux2",
        network=Flux2,
        config=config,
        largest=LARGEST * config.sample_size,
        weights=found.tensors,
        sha256=found.sha256,
        folder=folder.path,
        process=Process("flow", (float(flow.trained), 0.0), flow=flow, steps=steps, guidance=guidance, kind=kind),
        encoders=(EncoderUse("text_encoder", "tokenizer", info, around=AROUND, layer=LAYERS, padded=True),),
        notes=(f"weights: {found.sentence}", f"samples: {steps} steps ({said})"),
        facts={"mlp_norm_eps": config.eps},
        factor=FACTOR,
    )


def _distilled(folder: PromptFolder) -> bool:
    """Whether a klein is, as model_index.json says. Raises CheckpointError for another pipeline than those read."""
    file, name, found = folder.path / "model_index.json", folder.pipeline, folder.index.get("is_distilled", False)
    if name is not None and name not in (*KLEIN, *DEV):
        raise CheckpointError(
            f"{file}: '_class_name' is {name[:60]!r}: of FLUX.2, {KLEIN[0]} and {DEV[0]} are read, none that reads "
            "pictures beside words"
        )
    if not isinstance(found, bool):
        raise CheckpointError(f"{file}: 'is_distilled' is neither true nor false")
    return found


def _flow(folder: PromptFolder) -> FlowInfo:
    """Its pipelines make a shift of their own of size and steps, where the scheduler takes any."""
    ends = [[slope * tokens + start for tokens in (BASE, MOST)] for slope, start in (MANY, FEW)]
    few = FewSteps(steps=10, most_steps=200, base_mu=ends[1][0], most_mu=ends[1][1])
    shift = SizeShift(base_tokens=BASE, base_mu=ends[0][0], most_tokens=MOST, most_mu=ends[0][1], few=few)
    flow = read_flow(folder.scheduler_file, FlowInfo(by_size=shift))
    if flow.by_size is None:
        return flow
    return flow.model_copy(update={"by_size": shift.model_copy(update={"kind": flow.by_size.kind})})


def _config(folder: PromptFolder) -> Flux2Config:
    values = folder.values
    check_fixed(values, FIXED, "a FLUX.2")
    heads, head = (
        count(values, DEFAULTS, "num_attention_heads"),
        count(values, DEFAULTS, "attention_head_dim", MAX_HEAD),
    )
    joint, single = (count(values, DEFAULTS, key, MAX_DEPTH) for key in ("num_layers", "num_single_layers"))
    channels, axes, width = count(values, DEFAULTS, "in_channels"), values.get("axes_dims_rope", AXES), heads * head
    outputs = values.get("out_channels")
    told, ratio = values.get("guidance_embeds", True), above(values, "mlp_ratio", 3.0, 64)
    problems = {
        f"the width {width} is above {MAX_WIDTH}": width > MAX_WIDTH,
        f"'out_channels' is {str(outputs)[:40]}: expected {channels}": outputs not in (None, channels),
        "'axes_dims_rope' is not four even numbers that add up to 'attention_head_dim'": not are_axes(axes, head, 4),
        "'guidance_embeds' is neither true nor false": not isinstance(told, bool),
        f"'guidance_embeds' is true: {KLEIN[0]} tells its network no guidance": told and folder.pipeline in KLEIN,
        f"'guidance_embeds' is false: {DEV[0]} tells its network its guidance": not told and folder.pipeline in DEV,
    }
    check_none(problems)
    return Flux2Config(
        sample_size=folder.trained_side(SIDE, PACKED) // PACKED,
        in_channels=channels,
        out_channels=channels,
        num_heads=heads,
        head_size=head,
        joint_depth=joint,
        single_depth=single,
        caption_channels=count(values, DEFAULTS, "joint_attention_dim", 1 << 16),
        mlp_size=int(width * ratio),
        axes=tuple(axes),
        theta=above(values, "rope_theta", 2000.0, 1e9),
        eps=above(values, "eps", 1e-6, 1),
        told_guidance=told,
        tokens=TOKENS,
    )
