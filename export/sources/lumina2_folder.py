"""Reading Lumina 2: a diffusers pipeline folder, or a transformer folder alone."""

from __future__ import annotations

from pathlib import Path

from ...runtime.bundle.text_info import EncoderInfo
from ...runtime.errors import CheckpointError
from ...runtime.samplers.flow_settings import FlowInfo
from ..networks.lumina2 import Lumina2, Lumina2Config, our_names
from .config_values import above, are_axes, check_none, count, has_places
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

GUIDANCE, STEPS, SHIFT = 4.0, 30, 6.0  # of Lumina2Pipeline, and of its released scheduler
TIME = 1000.0  # what the network is told of pure noise, however many timesteps the scheduler counts
TOKENS, LARGEST = 256, 2  # `max_sequence_length`; times the side of training
# What Lumina2Pipeline puts before a prompt, and not before what is guided away from.
INSTRUCTION = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based "
    "on textual prompts or user prompts. <Prompt Start> "
)
AXES, PLACES = (32, 32, 32), (300, 512, 512)
MAX_DEPTH, MAX_HEADS = 1 << 8, 1 << 10
DEFAULTS = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "hidden_size": 2304, "num_layers": 26,
    "num_refiner_layers": 2, "num_attention_heads": 24, "num_kv_heads": 8, "multiple_of": 256, "cap_feat_dim": 1024,
}  # fmt: skip


def read_lumina2(path: Path) -> PromptCheckpoint:
    """Raises CheckpointError naming file and key."""
    folder = open_folder(path)
    config: Lumina2Config = config_of(folder, _config)
    found = read_weights(folder, lambda: Lumina2(config), "Lumina 2", our_names)
    flow = read_flow(folder.scheduler_file, FlowInfo(shift=SHIFT))
    if flow.by_size is not None:
        raise CheckpointError(
            f"{folder.scheduler_file}: 'use_dynamic_shifting' is true: Lumina2Pipeline makes the same shift of every "
            "size then, as no other does; only a fixed 'shift' is read"
        )
    info = EncoderInfo(tokens=config.tokens, width=config.caption_channels)
    use = EncoderUse("text_encoder", "tokenizer", info, instruction=INSTRUCTION, whole=True, layer=-2)
    return PromptCheckpoint(
        architecture="lumina2",
        network=Lumina2,
        config=config,
        largest=LARGEST * config.sample_size,
        weights=found.tensors,
        sha256=found.sha256,
        folder=folder.path,
        process=Process("flow", (TIME, 0.0), flow=flow, steps=STEPS, guidance=GUIDANCE),
        encoders=(use,),
        notes=(f"weights: {found.sentence}", f"text: {config.tokens} tokens, those of its instruction among them"),
        facts={"mlp_norm_eps": config.norm_eps},
    )


def _config(folder: PromptFolder) -> Lumina2Config:
    values = folder.values
    width, heads, channels, patch, size = (
        count(values, DEFAULTS, key)
        for key in ("hidden_size", "num_attention_heads", "in_channels", "patch_size", "sample_size")
    )
    keys = heads if values.get("num_kv_heads", 8) is None else count(values, DEFAULTS, "num_kv_heads", MAX_HEADS)
    outputs = channels if values.get("out_channels") is None else count(values, DEFAULTS, "out_channels")
    axes, places = values.get("axes_dim_rope", AXES), values.get("axes_lens", PLACES)
    problems = {
        f"'hidden_size' {width} is not a multiple of 'num_attention_heads' {heads}": width % heads,
        f"'num_attention_heads' {heads} is not a multiple of 'num_kv_heads' {keys}": heads % keys,
        "'axes_dim_rope' is not three even numbers that add up to the size of a head": not are_axes(
            axes, width // heads
        ),
        "'axes_lens' has less places than prompts and pictures need": not has_places(
            places, TOKENS + 1, LARGEST * size // patch
        ),
        f"'out_channels' is {outputs}: expected {channels}": outputs != channels,
        f"'sample_size' {size} is not a multiple of 'patch_size' {patch}": size % patch,
    }
    check_none(problems)
    return Lumina2Config(
        sample_size=size,
        patch_size=patch,
        in_channels=channels,
        out_channels=outputs,
        num_heads=heads,
        kv_heads=keys,
        head_size=width // heads,
        depth=count(values, DEFAULTS, "num_layers", MAX_DEPTH),
        refiner_depth=count(values, DEFAULTS, "num_refiner_layers", MAX_DEPTH),
        caption_channels=count(values, DEFAULTS, "cap_feat_dim"),
        mlp_size=_mlp_size(folder, width),
        axes=tuple(axes),
        norm_eps=above(values, "norm_eps", 1e-5, 1),
        tokens=TOKENS,
    )


def _mlp_size(folder: PromptFolder, width: int) -> int:
    """As diffusers' LuminaFeedForward makes it."""
    values, inner = folder.values, 4 * width
    if values.get("ffn_dim_multiplier") is not None:
        inner = int(above(values, "ffn_dim_multiplier", 1.0, 64) * inner)
    multiple = count(values, DEFAULTS, "multiple_of")
    return -(-inner // multiple) * multiple
