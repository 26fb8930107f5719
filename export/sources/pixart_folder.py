"""Reading PixArt-alpha or -Sigma: a diffusers pipeline folder, or a transformer folder alone.

The transformer's JSON and weights are read here, without importing diffusers; the text encoder's by `text_folder.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...runtime.errors import CheckpointError
from ...runtime.samplers.schedule import ScheduleInfo
from ..networks.pixart import PixArt, PixArtConfig
from .betas import DDPM_SCHEDULE
from .checkpoint import fitted_tensors
from .diffusers_folder import read_json, scheduler_facts
from .folder_weights import read_folder_weights, sha256_of_files
from .places import PIXART, diffusers_folder_of, file_of_weights, network_folder

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


@dataclass(frozen=True)
class PixArtCheckpoint:
    """The network's description and weights, and what its pipeline says beside them."""

    config: PixArtConfig
    weights: dict[str, Tensor]  # keys and shapes of PixArt(config), float32
    sha256: str
    schedule: ScheduleInfo
    prediction: str
    folder: Path  # of the pipeline, or of the transformer
    notes: tuple[str, ...]

    def model(self) -> PixArt:
        """The network in eval mode; shares the weights' memory."""
        with torch.device("meta"):
            model = PixArt(self.config)
        model.load_state_dict(self.weights, assign=True)
        return model.eval().requires_grad_(False)


def read_pixart(path: Path) -> PixArtCheckpoint:
    """Raises CheckpointError naming file and key."""
    only, path = file_of_weights(path), diffusers_folder_of(path)
    folder, index = network_folder(path), path / "model_index.json"
    config_file, files = folder / "config.json", [folder / "config.json"]
    pipeline = str(read_json(index).get("_class_name")) if index.is_file() else None
    try:
        config = _config(read_json(config_file), TOKENS.get(pipeline or "", max(TOKENS.values())))
    except CheckpointError as error:
        raise CheckpointError(f"{config_file}: {error}") from None
    found = read_folder_weights(folder, only)
    tensors = {key: value for key, value in found.tensors.items() if key not in LEFT_OVER}
    with torch.device("meta"):
        expected = PixArt(config).state_dict()
    try:
        weights = fitted_tensors(tensors, expected, "PixArt")
    except CheckpointError as error:
        raise CheckpointError(f"{found.files[0]}: {error}") from None
    schedule, prediction, files = DDPM_SCHEDULE, "epsilon", [*files, *found.files]
    scheduler = path / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        facts = scheduler_facts(scheduler)
        schedule, prediction, files = facts.schedule, facts.prediction, [*files, scheduler]
    said = f"{config.tokens} tokens of a prompt ({pipeline or 'the most of any PixArt: no pipeline says it'})"
    notes = (f"weights: {found.sentence}", f"text: {said}", f"predicts: {prediction}")
    return PixArtCheckpoint(config, weights, sha256_of_files(path, files), schedule, prediction, path, notes)


def _config(values: dict[str, Any], tokens: int) -> PixArtConfig:
    if values.get("_class_name") != PIXART:
        raise CheckpointError(f"'_class_name' is {values.get('_class_name')!r}, not {PIXART}")
    for key, value in FIXED.items():
        if values.get(key, value) != value:
            raise CheckpointError(f"'{key}' is {values[key]!r}: a PixArt has {value!r}")
    heads, head = _count(values, "num_attention_heads"), _count(values, "attention_head_dim")
    channels, patch, size = _count(values, "in_channels"), _count(values, "patch_size"), _count(values, "sample_size")
    outputs = _count(values, "out_channels") if values.get("out_channels", 8) is not None else channels
    told, scale = values.get("use_additional_conditions"), values.get("interpolation_scale")
    told = size == 128 if told is None else told is True
    scale = max(size // 64, 1) if scale is None else scale
    eps = values.get("norm_eps", 1e-6)
    problems = {
        f"the width {heads * head} is not a multiple of 4 of at most {MAX_WIDTH}": heads * head % 4
        or heads * head > MAX_WIDTH,
        "'cross_attention_dim' is not the width": _count(values, "cross_attention_dim") != heads * head,
        f"'out_channels' is {outputs}: expected {channels} or {2 * channels}": outputs not in (channels, 2 * channels),
        f"'sample_size' {size} is not a multiple of 'patch_size' {patch}": size % patch,
        "'interpolation_scale' is not a number above 0": type(scale) not in (int, float) or not 0 < scale < 1e4,
        "'norm_eps' is not a number between 0 and 1": type(eps) is not float or not 0 < eps < 1,
        "the width is not a multiple of 3, which the picture's size needs": told and heads * head % 3,
    }
    for problem, found in problems.items():
        if found:
            raise CheckpointError(problem)
    return PixArtConfig(
        sample_size=size,
        patch_size=patch,
        in_channels=channels,
        out_channels=outputs,
        num_heads=heads,
        head_size=head,
        depth=_count(values, "num_layers", MAX_DEPTH),
        caption_channels=_count(values, "caption_channels"),
        interpolation_scale=float(scale),
        norm_eps=eps,
        told_size=told,
        tokens=tokens,
    )


def _count(values: dict[str, Any], key: str, most: int = 1 << 14) -> int:
    value = values.get(key, DEFAULTS[key])
    if type(value) is not int or not 1 <= value <= most:
        raise CheckpointError(f"'{key}' is {str(value)[:40]!r}, not a number from 1 to {most}")
    return value
