"""Reading PixArt-alpha or -Sigma: a diffusers pipeline folder, or a transformer folder alone.

The transformer's JSON and weights are read here, without importing diffusers; the text encoder's by `text_folder.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ...runtime.bundle.text_info import EncoderInfo
from ...runtime.errors import CheckpointError
from ...runtime.samplers.distilled import SKIP, TIMESTEP_SCALING
from ..networks.pixart import PixArt, PixArtConfig
from .betas import DDPM_SCHEDULE
from .config_values import check_fixed, check_none, count
from .diffusers_folder import scheduler_facts
from .prompt_checkpoint import (
    EncoderUse,
    Process,
    PromptCheckpoint,
    PromptFolder,
    config_of,
    open_folder,
    read_weights,
)
from .scheduler_config import read_scheduler_json

GUIDANCE = 4.5  # of PixArt's pipelines
LCM_STEPS = 4  # of PixArt-LCM's users
LARGEST = 2  # times the side of training: positions are interpolated, quality beyond is nobody's promise
TOKENS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}  # `max_sequence_length` of each in diffusers 0.42
# What the class leaves open, and the only value that is a PixArt; defaults are those of diffusers 0.42.
FIXED = {
    "norm_type": "ada_norm_single",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
    "attention_type": "default",
}
DEFAULTS = {
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 28,
    "cross_attention_dim": 1152, "sample_size": 128, "patch_size": 2, "caption_channels": None,
}  # fmt: skip
LEFT_OVER = ("caption_projection.y_embedding",)  # of early releases: what training put in the place of a prompt
MAX_WIDTH, MAX_DEPTH = 1 << 14, 1 << 8


# What every PixArt that was released predicts, and was trained on.
RELEASED = Process("epsilon", (DDPM_SCHEDULE.steps - 1.0, 0.0), DDPM_SCHEDULE, guidance=GUIDANCE)


def read_pixart(path: Path) -> PromptCheckpoint:
    """Raises CheckpointError naming file and key."""
    folder = open_folder(path)
    config = config_of(folder, _config)
    found = read_weights(folder, lambda: PixArt(config), "PixArt", _without_left_overs)
    process, variant = _process(folder)
    said = f"{config.tokens} tokens of a prompt ({folder.pipeline or 'the most of any PixArt: no pipeline says it'})"
    notes = (f"weights: {found.sentence}", f"text: {said}", f"predicts: {process.prediction}", *variant)
    return pixart_of(config, found.tensors, found.sha256, folder.path, process, notes)


def pixart_of(
    config: PixArtConfig,
    weights: dict[str, Tensor],
    sha256: str,
    place: Path,
    process: Process,
    notes: tuple[str, ...],
) -> PromptCheckpoint:
    """place: the folder of the pipeline or transformer, or a file."""
    info = EncoderInfo(tokens=config.tokens, width=config.caption_channels)
    return PromptCheckpoint(
        architecture="pixart",
        network=PixArt,
        config=config,
        largest=LARGEST * config.sample_size,
        weights=weights,
        sha256=sha256,
        folder=place,
        process=process,
        encoders=(EncoderUse("text_encoder", "tokenizer", info, lower=True),),
        notes=notes,
        facts={"mlp_norm_eps": config.norm_eps},
    )


def _process(folder: PromptFolder) -> tuple[Process, tuple[str, ...]]:
    """What the network predicts, and how its pipeline samples; a note where it is a distilled variant's way."""
    if folder.scheduler_file is None:
        return RELEASED, ()
    facts = scheduler_facts(folder.scheduler_file)
    sampling, note = _variant(folder)
    process = Process(
        facts.prediction,
        (facts.schedule.steps - 1.0, 0.0),
        facts.schedule,
        guidance=1.0 if sampling else GUIDANCE,
        sampling=sampling,
    )
    return process, (note,) if note else ()


def _variant(folder: PromptFolder) -> tuple[dict[str, Any], str | None]:
    """The sampler's settings of PixArt-LCM and PixArt-alpha-DMD, and a note; nothing of every other PixArt."""
    values = read_scheduler_json(folder.scheduler_file, CheckpointError) if folder.scheduler_file is not None else {}
    kind, own = values.get("_class_name"), {"original_inference_steps": SKIP, "timestep_scaling": TIMESTEP_SCALING}
    clips = bool(values.get("clip_sample", kind == "DDPMScheduler"))
    if kind == "LCMScheduler":
        plain = not values.get("thresholding") and (not clips or values.get("clip_sample_range", 1.0) == 1.0)
        if not plain or any(values.get(key, value) != value for key, value in own.items()):
            return {}, "samples: DPM-Solver++, as its LCMScheduler has settings that `run --sampler lcm` has not"
        said = f"samples: LCM, {LCM_STEPS} steps without guidance (its scheduler's)"
        return {"sampler": "lcm", "steps": LCM_STEPS, "clip_x0": clips}, said
    if kind == "DDPMScheduler" and "dmd" in folder.path.absolute().name.lower():
        said = "samples: DMD, one step without guidance (by the folder's name; else `run --sampler dpm++`)"
        return {"sampler": "dmd", "steps": 1, "clip_x0": clips}, said
    return {}, None


def _without_left_overs(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if key not in LEFT_OVER}


def _config(folder: PromptFolder) -> PixArtConfig:
    values, tokens = folder.values, TOKENS.get(folder.pipeline or "", max(TOKENS.values()))
    check_fixed(values, FIXED, "a PixArt")
    heads, head, channels, patch, size = (
        count(values, DEFAULTS, key)
        for key in ("num_attention_heads", "attention_head_dim", "in_channels", "patch_size", "sample_size")
    )
    outputs = count(values, DEFAULTS, "out_channels") if values.get("out_channels", 8) is not None else channels
    told, scale = values.get("use_additional_conditions"), values.get("interpolation_scale")
    told = size == 128 if told is None else told is True
    scale = max(size // 64, 1) if scale is None else scale
    eps = values.get("norm_eps", 1e-6)
    problems = {
        f"the width {heads * head} is not a multiple of 4 of at most {MAX_WIDTH}": heads * head % 4
        or heads * head > MAX_WIDTH,
        "'cross_attention_dim' is not the width": count(values, DEFAULTS, "cross_attention_dim") != heads * head,
        f"'out_channels' is {outputs}: expected {channels} or {2 * channels}": outputs not in (channels, 2 * channels),
        f"'sample_size' {size} is not a multiple of 'patch_size' {patch}": size % patch,
        "'interpolation_scale' is not a number above 0": type(scale) not in (int, float) or not 0 < scale < 1e4,
        "'norm_eps' is not a number between 0 and 1": type(eps) is not float or not 0 < eps < 1,
        "the width is not a multiple of 3, which the picture's size needs": told and heads * head % 3,
    }
    check_none(problems)
    return PixArtConfig(
        sample_size=size,
        patch_size=patch,
        in_channels=channels,
        out_channels=outputs,
        num_heads=heads,
        head_size=head,
        depth=count(values, DEFAULTS, "num_layers", MAX_DEPTH),
        caption_channels=count(values, DEFAULTS, "caption_channels"),
        interpolation_scale=float(scale),
        norm_eps=eps,
        told_size=told,
        tokens=tokens,
    )
