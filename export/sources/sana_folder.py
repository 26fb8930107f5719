"""Reading Sana, Sana 1.5 or SANA-Sprint: a diffusers pipeline folder, or a transformer folder alone."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ...runtime.bundle.text_info import EncoderInfo
from ..networks.sana import Sana, SanaConfig
from .config_values import above, check_fixed, check_none, count
from .prompt_checkpoint import (
    EncoderUse,
    PromptCheckpoint,
    PromptFolder,
    config_of,
    open_folder,
    read_weights,
)
from .sana_scheduler import process_of_sana

LARGEST = 2  # times the side of training: quality beyond is nobody's promise
FACTOR = 32  # of DC-AE
TOKENS = 300  # `max_sequence_length` of the pipelines
# What the pipelines put before a prompt, so that Gemma thinks of more than it says (`complex_human_instruction`).
INSTRUCTION = """\
Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual descriptions suitable for image \
generation. Evaluate the level of detail in the user prompt:
- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, and spatial relationships \
to create vivid and concrete scenes.
- If the prompt is already detailed, refine and enhance the existing details slightly without overcomplicating.
Here are examples of how to transform or refine prompts:
- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round shape, sleeping peacefully \
on a warm sunny windowsill, surrounded by pots of blooming red flowers.
- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring glowing street lamps, a \
diverse crowd of people in colorful clothing, and a double-decker bus passing by towering glass skyscrapers.
Please generate only the enhanced description for the prompt below and avoid including any additional commentary or \
evaluations:
User Prompt: """
# What the class leaves open, and the only value that is read; defaults are those of diffusers 0.42.
FIXED = {"norm_elementwise_affine": False}
DEFAULTS = {
    "in_channels": 32, "out_channels": 32, "num_attention_heads": 70, "attention_head_dim": 32, "num_layers": 20,
    "num_cross_attention_heads": 20, "cross_attention_head_dim": 112, "cross_attention_dim": 2240,
    "caption_channels": 2304, "sample_size": 32, "patch_size": 1,
}  # fmt: skip
NORMS = (None, "rms_norm_across_heads")
MAX_WIDTH, MAX_DEPTH = 1 << 14, 1 << 8


def read_sana(path: Path) -> PromptCheckpoint:
    """Raises CheckpointError naming file and key."""
    folder = open_folder(path)
    config = config_of(folder, _config)
    found = read_weights(folder, lambda: Sana(config), "Sana", _our_names)
    process = process_of_sana(folder.scheduler_file, config.guided)
    info = EncoderInfo(tokens=TOKENS, width=config.caption_channels)
    use = EncoderUse("text_encoder", "tokenizer", info, instruction=INSTRUCTION)
    return PromptCheckpoint(
        architecture="sana-sprint" if config.guided else "sana",
        network=Sana,
        config=config,
        largest=LARGEST * config.sample_size,
        weights=found.tensors,
        sha256=found.sha256,
        folder=folder.path,
        process=process,
        encoders=(use,),
        notes=(f"weights: {found.sentence}", f"samples: {process.sampling['sampler']}, {process.steps} steps"),
        facts={"mlp_norm_eps": config.norm_eps, "mlp_ratio": config.mlp_ratio},
        factor=FACTOR,
    )


def _our_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace("time_embed.emb.", "time_embed."): value for key, value in tensors.items()}


def _config(folder: PromptFolder) -> SanaConfig:
    values = folder.values
    check_fixed(values, FIXED, "a Sana")
    heads, head, channels, patch, size = (
        count(values, DEFAULTS, key)
        for key in ("num_attention_heads", "attention_head_dim", "in_channels", "patch_size", "sample_size")
    )
    sprint, positions = values.get("guidance_embeds") is True, values.get("interpolation_scale")
    outputs = values.get("out_channels") or channels
    problems = {
        f"the width {heads * head} is not a multiple of 4 of at most {MAX_WIDTH}": heads * head % 4
        or heads * head > MAX_WIDTH,
        "'cross_attention_dim' is not the width": count(values, DEFAULTS, "cross_attention_dim") != heads * head,
        f"'out_channels' is {str(outputs)[:40]}: expected {channels}": outputs != channels,
        f"'sample_size' {size} is not a multiple of 'patch_size' {patch}": size % patch,
        f"'qk_norm' is {str(values.get('qk_norm'))[:40]!r}, expected one of {NORMS}": values.get("qk_norm")
        not in NORMS,
    }
    check_none(problems)
    return SanaConfig(
        sample_size=size,
        patch_size=patch,
        in_channels=channels,
        out_channels=channels,
        num_heads=heads,
        head_size=head,
        depth=count(values, DEFAULTS, "num_layers", MAX_DEPTH),
        cross_heads=count(values, DEFAULTS, "num_cross_attention_heads"),
        cross_head_size=count(values, DEFAULTS, "cross_attention_head_dim"),
        caption_channels=count(values, DEFAULTS, "caption_channels"),
        mlp_ratio=above(values, "mlp_ratio", 2.5, 64),
        attention_bias=values.get("attention_bias") is True,
        norm_eps=above(values, "norm_eps", 1e-6, 1),
        qk_norm=values.get("qk_norm") is not None,
        interpolation_scale=None if positions is None else above(values, "interpolation_scale", 1.0, 1e4),
        guided=sprint,
        guidance_scale=above(values, "guidance_embeds_scale", 0.1, 1e6),
        timestep_scale=1.0 if sprint else above(values, "timestep_scale", 1.0, 1e6),  # Sprint's pipeline has none
    )
