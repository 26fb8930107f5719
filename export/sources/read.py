"""A checkpoint with everything decided: what its source says, what the user says, and the habit where nobody does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ...runtime.errors import CheckpointError, RequestError
from ...runtime.samplers.process import FLOWS, NO_BETAS
from ...runtime.samplers.schedule import ScheduleInfo
from . import checkpoint as checkpoint_file
from . import source_of
from .asked import Asked
from .betas import read_betas
from .checkpoint import Checkpoint, without_variance
from .prediction import recorded_prediction


def read_checkpoint(path: Path, **asked: Any) -> Checkpoint:
    """A checkpoint file as it is, with what it says alone; asked: as for `read_source`. Raises CheckpointError."""
    return checkpoint_file.read(path, Asked(**asked))


def read_source(path: Path, **fields: Any) -> Checkpoint:
    """Whatever of SOURCES `path` is, read and checked; fields: those of `Asked`.

    Its prediction is decided: as asked, else as the source says, else epsilon. Raises CheckpointError, RequestError
    for what was asked and does not fit.
    """
    asked = Asked(**fields)
    checkpoint = source_of(path, asked).read(path, asked)
    prediction, why = _prediction(path, checkpoint, asked.prediction)
    if (prediction == "mean-flow") != ("interval" in checkpoint.config.told):
        which = "is MeanFlow's" if "interval" in checkpoint.config.told else "has no embedder of how far a step goes"
        raise CheckpointError(f"{path}: --prediction {prediction}: this network {which}; leave the option out")
    if prediction in FLOWS:
        checkpoint = without_variance(checkpoint)
        if checkpoint.config.learn_sigma:
            raise CheckpointError(
                f"--model {asked.model}: a flow model predicts no variance: set learn_sigma=False in config"
            )
    schedule, sampling = _schedule(checkpoint, asked, prediction)
    notes = (*checkpoint.notes, f"predicts: {prediction} ({why})")
    return replace(checkpoint, prediction=prediction, schedule=schedule, sampling=sampling, notes=notes)


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


def _schedule(checkpoint: Checkpoint, asked: Asked, prediction: str) -> tuple[ScheduleInfo | None, dict[str, Any]]:
    """The betas of training and the settings of sampling; --betas and --zero-terminal-snr replace both."""
    given = asked.betas is not None or asked.zero_terminal_snr
    if prediction in NO_BETAS:
        if given:
            what = "EDM's model" if prediction == "edm" else "a flow model"
            raise RequestError(f"--betas and --zero-terminal-snr are for diffusion models: {what} has no betas")
        fitting = str(checkpoint.sampling.get("sampler")).startswith("edm" if prediction == "edm" else "flow")
        return None, checkpoint.sampling if fitting else {}
    if not given:
        return checkpoint.schedule, checkpoint.sampling
    if asked.zero_terminal_snr and prediction == "epsilon":
        raise RequestError("--zero-terminal-snr: epsilon says nothing where no data is left; give --prediction v or x0")
    return read_betas(asked.betas or "linear", asked.zero_terminal_snr), {}
