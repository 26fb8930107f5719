"""Reading a diffusers DiT: a pipeline folder (model_index.json, transformer/, ...) or a transformer folder alone.

diffusers' DiT is not facebookresearch/DiT's function: its timestep frequencies divide by 127 and the norm before each
MLP has eps 1e-5. Both stay fields of the model. JSON and safetensors are read here, without importing diffusers; a
`.bin` goes the way of every pickle, `weights_only`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime import json_files
from ...runtime.errors import CheckpointError
from ..networks.dit import DiTConfig
from .asked import Asked
from .checkpoint import Checkpoint, fitted_weights
from .config_values import check_fixed
from .diffusers_weights import with_our_names
from .folder_weights import FolderWeights, read_folder_weights, sha256_of_files
from .merging import merged
from .places import NETWORK_FOLDERS, diffusers_folder_of, file_of_weights, network_folder
from .scheduler_config import SchedulerFacts, read_scheduler, read_scheduler_json
from .shapes import MAX_TOKENS, MAX_WIDTH, USUAL_FACTORS, checked_image_size

CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")  # the latter is what older releases wrote
FREQUENCY_DIVISOR = 127
# What the architecture of DiT leaves open in diffusers' class, and the only value that is a DiT. The defaults are those
# of DiTTransformer2DModel 0.42.
FIXED = {
    "norm_type": "ada_norm_zero",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}


def read(path: Path, asked: Asked) -> Checkpoint:
    """Reads and checks a diffusers DiT. Raises CheckpointError naming file and key.

    path: the folder, or a file of it, see `diffusers_folder_of`. The scheduler of what is known to be a flow model is
    not read: it has no betas.
    """
    if asked.weights is not None:
        raise CheckpointError(f"--weights chooses among those in a file: {path} is a folder")
    only, path = file_of_weights(path), diffusers_folder_of(path)
    folder = network_folder(path)
    config_file = folder / "config.json"
    values = read_json(config_file)
    try:
        config = _config(values, asked)
    except CheckpointError as error:
        raise CheckpointError(f"{config_file}: {error}") from None
    found = read_folder_weights(folder, only)
    tensors = merged(found.tensors)
    try:
        config, ours = with_our_names(tensors, config)
        weights = fitted_weights(ours, config)
    except CheckpointError as error:
        raise CheckpointError(f"{found.files[0]}: {error}") from None
    pipeline = _pipeline(path, config.num_classes, asked)
    files = (config_file, *found.files, *pipeline.files)
    facts = pipeline.scheduler
    return Checkpoint(
        config,
        weights,
        sha256_of_files(path, files),
        files,
        labels=pipeline.labels,
        guided_channels=config.in_channels,
        schedule=None if facts is None else facts.schedule,
        prediction=None if facts is None else facts.prediction,
        sampling={} if facts is None else facts.sampling,
        notes=(_weights_note(path, folder, found), *(OWN_EMBEDDERS_NOTE,) * config.block_embedders),
    )


@dataclass(frozen=True)
class _Pipeline:
    """What a pipeline says beside its network; empty without one."""

    files: tuple[Path, ...] = ()
    labels: tuple[str, ...] = ()
    scheduler: SchedulerFacts | None = None


def _pipeline(path: Path, classes: int, asked: Asked) -> _Pipeline:
    index, scheduler = path / "model_index.json", path / "scheduler" / "scheduler_config.json"
    if not index.is_file():
        return _Pipeline()
    labels = _labels(index, classes)
    if not scheduler.is_file() or asked.prediction == "flow-to-data":
        return _Pipeline((index,), labels)
    return _Pipeline((index, scheduler), labels, scheduler_facts(scheduler))


def scheduler_facts(path: Path) -> SchedulerFacts:
    """What a pipeline's scheduler says of its model. Raises CheckpointError."""
    values = read_scheduler_json(path, CheckpointError)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return read_scheduler(path, values)


OWN_EMBEDDERS_NOTE = "embedders: every block has its own timestep and label embedder, as diffusers trains them"


def _weights_note(path: Path, folder: Path, found: FolderWeights) -> str:
    """Which weights were taken, and what else is there."""
    others = [name for name in NETWORK_FOLDERS if name != folder.name and (path / name / "config.json").is_file()]
    average = ", the average over training (EMA)" if folder.name.endswith("_ema") else ""
    return f"weights: {found.sentence}{average}{f', not {others[0]}/' if others else ''}"


def read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: not a complete diffusers folder")
    values = json_files.read_json(path, json_files.MAX_CONFIG_BYTES, CheckpointError)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return values


def _config(values: dict[str, Any], asked: Asked) -> DiTConfig:
    if values.get("_class_name") not in CLASSES:
        raise CheckpointError(f"'_class_name' is {values.get('_class_name')!r}, not a DiT ({' or '.join(CLASSES)})")
    check_fixed(values, FIXED, "a DiT")
    channels, patch = _count(values, "in_channels", 1 << 12), _count(values, "patch_size", 1 << 10)
    size, given_heads = _count(values, "sample_size"), _count(values, "num_attention_heads")
    outputs = channels if values.get("out_channels") is None else _count(values, "out_channels")
    if outputs not in (channels, 2 * channels):
        raise CheckpointError(f"'out_channels' is {outputs}: expected {channels} or {2 * channels}")
    if size % patch or (size // patch) ** 2 > MAX_TOKENS:
        raise CheckpointError(
            f"'sample_size' {size} is not a multiple of 'patch_size' {patch} with at most {MAX_TOKENS} patches"
        )
    hidden, depth = given_heads * _count(values, "attention_head_dim"), _count(values, "num_layers")
    if hidden % 4 or hidden > MAX_WIDTH:
        raise CheckpointError(
            f"the width {hidden} is not a multiple of 4, which the position embedding needs, of at most {MAX_WIDTH}"
        )
    if asked.heads is not None and asked.heads != given_heads:
        raise CheckpointError(f"'num_attention_heads' is {given_heads}: leave --heads {asked.heads} out")
    eps = values.get("norm_eps", 1e-5)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise CheckpointError(f"'norm_eps' is {eps!r}, not a number between 0 and 1")
    null_class = True if asked.null_class is None else asked.null_class
    return DiTConfig(
        input_size=checked_image_size(size, asked.image_size, asked.factor or USUAL_FACTORS.get(channels)),
        patch_size=patch,
        in_channels=channels,
        hidden_size=hidden,
        depth=depth,
        num_heads=given_heads,
        num_classes=_count(values, "num_embeds_ada_norm") + int(not null_class),  # the table has one row more
        learn_sigma=outputs == 2 * channels,
        null_class=null_class,
        frequency_divisor=FREQUENCY_DIVISOR,
        mlp_norm_eps=eps,
    )


def _count(values: dict[str, Any], key: str, most: int = 1 << 20) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise CheckpointError(
            f"'{key}' is {str(value)[:40] if isinstance(value, str) else value}, not a number from 1 to {most}"
        )
    return value


def _labels(index: Path, classes: int) -> tuple[str, ...]:
    """Class names from the pipeline's id2label; empty where it has none."""
    labels = read_json(index).get("id2label")
    if not labels:
        return ()
    numbers = [str(i) for i in range(classes)]
    if not isinstance(labels, dict) or set(labels) != set(numbers):
        raise CheckpointError(
            f"{index}: 'id2label' does not name exactly the classes 0 to {classes - 1}: mend it, or take it out"
        )
    return tuple(str(labels[number]) for number in numbers)
