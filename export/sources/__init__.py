"""Every place a DiT comes from, behind one function."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from ...runtime.errors import CheckpointError
from .checkpoint import Checkpoint, read_checkpoint, without_variance
from .custom import read_custom
from .diffusers_folder import diffusers_folder_of, is_diffusers_folder, read_diffusers_folder
from .prediction import recorded_prediction
from .settings import run_folder

# Names that say when a file was saved, not of what it is; also Lightning's epoch=3-step=100.
STEP_NAMES = r"(?i)\d+|last|latest|best|final|ema|((epoch|step)[=_-]?\d+-?)+"


def read_source(
    path: Path,
    *,
    heads: int | None = None,
    null_class: bool | None = None,
    image_size: int | None = None,
    factor: int | None = None,
    model: str | None = None,
    prediction: str | None = None,
    weights: str | None = None,
) -> Checkpoint:
    """A checkpoint file, a diffusers folder, or (model) a custom network, with `prediction` decided.

    heads, null_class, image_size, factor, weights: see `read_checkpoint`. model: "package.module:factory". prediction:
    None believes the source, else epsilon; "flow-to-data" is SiT, whose checkpoints look like DiT's. Raises
    CheckpointError.
    """
    if model is not None:
        if (heads, null_class, image_size, weights) != (None, None, None, None):
            raise CheckpointError(
                "--model says all about the network: leave --heads, --null-class, --image-size and --weights out"
            )
        checkpoint = read_custom(path, model)
    elif diffusers_folder_of(path).is_dir():
        if weights is not None:
            raise CheckpointError(f"--weights chooses among those in a file: {path} is a folder")
        if not is_diffusers_folder(diffusers_folder_of(path)):
            raise CheckpointError(f"{path} is a folder without model_index.json or config.json: not a diffusers DiT")
        checkpoint = read_diffusers_folder(
            path,
            heads=heads,
            null_class=null_class,
            image_size=image_size,
            factor=factor,
            flow=prediction == "flow-to-data",
        )
    else:
        checkpoint = read_checkpoint(
            path, heads=heads, null_class=null_class, image_size=image_size, factor=factor, weights=weights
        )
    prediction, why = _prediction(path, checkpoint, prediction)
    if prediction == "flow-to-data":
        checkpoint = without_variance(checkpoint)
        if checkpoint.config.learn_sigma:
            raise CheckpointError(
                f"--model {model}: a flow model predicts no variance: set learn_sigma=False in config"
            )
        checkpoint = replace(checkpoint, schedule=None, sampling={})
    return replace(checkpoint, prediction=prediction, notes=(*checkpoint.notes, f"predicts: {prediction} ({why})"))


def _prediction(path: Path, checkpoint: Checkpoint, asked: str | None) -> tuple[str, str]:
    """What the network predicts, and who says it."""
    transport = "path_type" in checkpoint.settings.values  # SiT's: told or not, only one of them works
    if asked is not None and not transport:
        return asked, "--prediction"
    if checkpoint.prediction is not None:
        return checkpoint.prediction, "the source's"
    try:
        recorded = recorded_prediction(checkpoint.settings) or ("epsilon", "assumed: nothing says otherwise")
        if asked not in (None, recorded[0]):
            raise CheckpointError(f"--prediction {asked} contradicts {recorded[1]}, which is {recorded[0]}")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return recorded


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
