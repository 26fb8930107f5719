"""Every place a DiT comes from, behind one function."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..runtime.errors import CheckpointError
from .checkpoint import Checkpoint, read_checkpoint, without_variance
from .custom import read_custom
from .diffusers_folder import diffusers_folder_of, is_diffusers_folder, read_diffusers_folder


def read_source(
    path: Path,
    *,
    heads: int | None = None,
    null_class: bool | None = None,
    image_size: int | None = None,
    factor: int | None = None,
    model: str | None = None,
    prediction: str | None = None,
) -> Checkpoint:
    """A checkpoint file, a diffusers folder, or (model) a custom network, with `prediction` decided.

    heads, null_class, image_size, factor: see `read_checkpoint`. model: "package.module:factory". prediction: None
    believes the source, else epsilon; "flow-to-data" is SiT, whose checkpoints look like DiT's. Raises CheckpointError.
    """
    if model is not None:
        if (heads, null_class, image_size) != (None, None, None):
            raise CheckpointError(
                "--model says all about the network: leave --heads, --null-class and --image-size out"
            )
        checkpoint = read_custom(path, model)
    elif diffusers_folder_of(path).is_dir():
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
        checkpoint = read_checkpoint(path, heads=heads, null_class=null_class, image_size=image_size, factor=factor)
    prediction = prediction or checkpoint.prediction or "epsilon"
    if prediction == "flow-to-data":
        checkpoint = without_variance(checkpoint)
        if checkpoint.config.learn_sigma:
            raise CheckpointError(
                f"--model {model}: a flow model predicts no variance: set learn_sigma=False in config"
            )
        checkpoint = replace(checkpoint, schedule=None, sampling={})
    return replace(checkpoint, prediction=prediction)
