"""Where a network lies, by the names of files and folders alone: in diffusers' folders, and in a training run's."""

from __future__ import annotations

import re
from pathlib import Path

from ...runtime.errors import CheckpointError
from ...runtime.json_files import MAX_CONFIG_BYTES, read_json

ENTRY_FILES = ("model_index.json", "config.json")
# Where a pipeline, or the folder that a training run saves its state in (`accelerator.save_state`), has its network.
NETWORK_FOLDERS = ("transformer_ema", "unet_ema", "transformer", "unet")
STEM = "diffusion_pytorch_model"
WEIGHTS = re.compile(  # of diffusers' `save_pretrained`: one file, or the index of several
    r"(?!.*-\d{5}-of-\d{5})"  # a shard alone is not the weights
    + STEM
    + r"(?:\.(?P<variant>[\w-]+))?\.(?P<kind>safetensors|bin)(?P<index>\.index(?:\.(?P<sharded>[\w-]+))?\.json)?"
)
# (class, norm_type) that older releases wrote, PixArt-alpha's own among them -> the class of today
OLD_NAMES = {("Transformer2DModel", "ada_norm_single"): "PixArtTransformer2DModel"}
CHECKPOINT_FOLDERS = ("checkpoints", "checkpoint", "ckpts", "ckpt", "weights")
# Names that say when a file was saved, not of what it is; also Lightning's epoch=3-step=100.
STEP_NAMES = r"(?i)\d+|last|latest|best|final|ema|((epoch|step)[=_-]?\d+-?)+"


def is_diffusers_folder(path: Path) -> bool:
    return any((path / name).is_file() for name in ENTRY_FILES) or network_folder(path) != path


def class_of_network(path: Path) -> str | None:
    """The class that the network's config.json in a diffusers folder names; None where nothing says it."""
    config = network_folder(diffusers_folder_of(path)) / "config.json"
    if not config.is_file():
        return None
    try:
        values = read_json(config, MAX_CONFIG_BYTES, CheckpointError)
    except CheckpointError:
        return None  # whoever reads it says so
    name = values.get("_class_name") if isinstance(values, dict) else None
    if not isinstance(name, str):
        return None
    return OLD_NAMES.get((name, str(values.get("norm_type"))), name)


def diffusers_folder_of(path: Path) -> Path:
    """The folder that a file of it means: its model_index.json, its config.json, or weights beside a config.json."""
    if path.is_file() and (path.name in ENTRY_FILES or file_of_weights(path)):
        return path.parent
    return path


def is_lone_file(path: Path) -> bool:
    """Whether it is a file that means no diffusers folder."""
    return path.is_file() and diffusers_folder_of(path) == path


def file_of_weights(path: Path) -> str | None:
    """The name of a diffusers folder's file of weights, where `path` is one."""
    weights = path.is_file() and WEIGHTS.fullmatch(path.name) and (path.parent / "config.json").is_file()
    return path.name if weights else None


def network_folder(path: Path) -> Path:
    """The folder of the network's config.json: the first of a pipeline or of a training run's state, or `path`."""
    if (path / "config.json").is_file() and not (path / "model_index.json").is_file():
        return path
    folders = [path / name for name in NETWORK_FOLDERS if (path / name / "config.json").is_file()]
    missing = path / "transformer" if (path / "model_index.json").is_file() else path
    return folders[0] if folders else missing


def vae_folder(path: Path) -> Path | None:
    """The autoencoder's folder of a pipeline folder, None where there is none."""
    folder = path / "vae"
    return folder if (folder / "config.json").is_file() else None


def run_folder(path: Path) -> Path:
    """The folder of the training run: that of the checkpoint, or the one above its `checkpoints/`."""
    folder = path.absolute().parent
    return folder.parent if folder.name in CHECKPOINT_FOLDERS else folder


def bundle_name(path: Path) -> str:
    """The default name of a checkpoint's bundle: its own; `NAME-bundle` for a folder.

    A file named by its step alone, as train.py does, gets its run's name: `000-DiT-S-2/checkpoints/0400000.pt` is
    `000-DiT-S-2-0400000`.
    """
    path = diffusers_folder_of(path).absolute()
    if path.is_dir():
        return f"{path.name}-bundle"
    run = run_folder(path).name
    return f"{run}-{path.stem}" if run and re.fullmatch(STEP_NAMES, path.stem) else path.stem
