"""The betas of training, where a checkpoint does not say them: `export --betas`."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from ...runtime.errors import RequestError
from ...runtime.json_files import MAX_CONFIG_BYTES, read_json
from ...runtime.samplers.schedule import TRAINING_STEPS, ScheduleInfo

ENDS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}  # of DDPM, and of latent diffusion
PIPELINE_STEPS = 50  # the fewest timesteps that the ready programs need
DDPM_SCHEDULE = ScheduleInfo(kind="linear", beta_start=1e-4, beta_end=0.02, steps=TRAINING_STEPS)


def read_betas(text: str, zero_terminal_snr: bool = False) -> ScheduleInfo:
    """KIND[:START,END], or a JSON file with the list of betas -> the schedule. Raises RequestError naming the value.

    KIND is linear, scaled_linear or cosine, over 1,000 timesteps. START and END are those of DDPM (linear) and of
    latent diffusion (scaled_linear) unless they are given.
    """
    kind, _, ends = text.partition(":")
    try:
        if kind in ENDS:
            start, end = (float(part) for part in ends.split(",")) if ends else ENDS[kind]
            values = {"kind": kind, "beta_start": start, "beta_end": end, "steps": TRAINING_STEPS}
        elif text == "cosine":
            values = {"kind": "cosine", "steps": TRAINING_STEPS}
        else:
            if not Path(text).exists():
                known = "linear, scaled_linear, cosine, KIND:START,END"
                raise RequestError(f"--betas '{text}' is not {known}, nor a JSON file that exists")
            betas = read_json(Path(text), MAX_CONFIG_BYTES, RequestError)
            if not isinstance(betas, list) or len(betas) < PIPELINE_STEPS:
                raise ValueError(f"not a list of at least {PIPELINE_STEPS} numbers")
            values = {"kind": "given", "betas": betas, "steps": len(betas)}
        return ScheduleInfo.model_validate(values | {"zero_terminal_snr": zero_terminal_snr})
    except (OSError, ValidationError, ValueError) as error:  # OSError: a name that no file can have
        raise RequestError(f"--betas '{text}': {_sentence(error)}") from None


def _sentence(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return " ".join([".".join(str(part) for part in first["loc"]), first["msg"]]).strip()
    return str(error)
