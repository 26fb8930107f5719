"""A diffusers scheduler's config: the betas a model was trained with, and the program that samples like it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...runtime.errors import CheckpointError, DitedgeError
from ...runtime.json_files import MAX_CONFIG_BYTES, parse_json, read_bounded
from ...runtime.samplers.schedule import TRAINING_STEPS, ScheduleInfo

PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PIPELINE_STEPS = 50  # DiTPipeline's num_inference_steps
DDPM_BETAS = ("linear", 1e-4, 0.02)  # 'beta_schedule', 'beta_start', 'beta_end' where a config leaves them out
LATENT_BETAS = ("linear", 0.00085, 0.012)
# The classes of diffusers 0.42 that have betas, each over 1,000 steps by default.
DEFAULTS = {
    **dict.fromkeys(
        ["DDIMScheduler", "DDIMInverseScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler",
         "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler",
         "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
         "LMSDiscreteScheduler", "PNDMScheduler", "RePaintScheduler", "SASolverScheduler", "UniPCMultistepScheduler"],
        DDPM_BETAS,
    ),
    **dict.fromkeys(
        ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler"],
        LATENT_BETAS,
    ),
    **dict.fromkeys(
        ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "LCMScheduler", "TCDScheduler"],
        ("scaled_linear", *LATENT_BETAS[1:]),
    ),
    "UnCLIPScheduler": ("squaredcos_cap_v2", *DDPM_BETAS[1:]),
}  # fmt: skip
VARIANCES = {"fixed_small": "fixed-small", "fixed_large": "fixed-large"}


@dataclass(frozen=True)
class SchedulerFacts:
    """What a scheduler folder says about a model."""

    schedule: ScheduleInfo
    prediction: str
    sampling: dict[str, Any] = field(default_factory=dict)  # fields of `SamplerSettings`; empty: none is the same


def read_scheduler_json(path: Path, error: type[DitedgeError]) -> Any:
    """What `scheduler_config.json` holds. Raises `error`.

    diffusers writes the default of `lambda_min_clipped`, for which JSON has no number: the least of float32 means
    the same.
    """
    raw = read_bounded(path, MAX_CONFIG_BYTES, error)
    return parse_json(re.sub(rb'("lambda_min_clipped"\s*:\s*)-Infinity', rb"\1-3.0e38", raw), path, error)


def read_scheduler(path: Path, values: dict[str, Any]) -> SchedulerFacts:
    """The facts in `scheduler_config.json`. Raises CheckpointError for betas that a bundle cannot say.

    What a config leaves out is its class's default in diffusers 0.42.
    """
    name = _shown(values.get("_class_name"))
    if "Flow" in name:
        raise CheckpointError(
            f"{path}: '_class_name' {name} is a flow model's: give --prediction flow-to-data if the network predicts "
            "data - noise and is told t from 0 (noise) to 1 (data), as SiT; the other way round needs --model"
        )
    if name not in DEFAULTS and not {"num_train_timesteps", "beta_schedule"} <= set(values):
        raise CheckpointError(f"{path}: '_class_name' {name} is not a scheduler with betas")
    prediction = _shown(values.get("prediction_type", "epsilon"))
    if prediction not in PREDICTIONS:
        raise CheckpointError(f"{path}: 'prediction_type' is {prediction!r}, expected one of {', '.join(PREDICTIONS)}")
    zero_snr = bool(values.get("rescale_betas_zero_snr"))
    if zero_snr and prediction == "epsilon":
        raise CheckpointError(
            f"{path}: 'rescale_betas_zero_snr' with 'prediction_type' epsilon: epsilon says nothing about the picture "
            "where no data is left; such a model was trained to predict v_prediction or sample"
        )
    schedule = _schedule(path, values, zero_snr)
    if schedule.steps < PIPELINE_STEPS:
        raise CheckpointError(
            f"{path}: 'num_train_timesteps' is {schedule.steps}: samplers need at least {PIPELINE_STEPS}"
        )
    return SchedulerFacts(schedule, PREDICTIONS[prediction], _sampling(values, schedule.steps))


def _shown(value: Any) -> str:
    """A value of the file as a key and for a message: whatever it is, it is a short string now."""
    return str(value)[:60]


def _schedule(path: Path, values: dict[str, Any], zero_snr: bool) -> ScheduleInfo:
    """diffusers' defaults where the config leaves a value out."""
    default, start, end = DEFAULTS.get(_shown(values.get("_class_name")), DDPM_BETAS)
    kind, trained = _shown(values.get("beta_schedule", default)), values.get("trained_betas")
    if trained is None and kind not in BETAS:
        raise CheckpointError(f"{path}: 'beta_schedule' is {kind!r}, expected one of {', '.join(BETAS)}")
    fields: dict[str, Any] = {"kind": BETAS.get(kind), "steps": values.get("num_train_timesteps", TRAINING_STEPS)}
    if trained is not None:
        fields |= {"kind": "given", "betas": trained}
    elif fields["kind"] != "cosine":
        fields |= {"beta_start": values.get("beta_start", start), "beta_end": values.get("beta_end", end)}
    try:
        return ScheduleInfo(**fields, zero_terminal_snr=zero_snr)
    except ValidationError as error:
        first = error.errors()[0]
        key = {"steps": "num_train_timesteps", "betas": "trained_betas"}.get(str((first["loc"] or ("betas",))[0]))
        raise CheckpointError(f"{path}: '{key or first['loc'][0]}': {first['msg']}") from None


def _sampling(values: dict[str, Any], trained: int) -> dict[str, Any]:
    """DiTPipeline's 50 steps with this scheduler as a program, where it is DDIM or DDPM with leading spacing.

    Leading spacing is the respacing "ddim50" when 50 divides the steps of training, "ddim50+1" with an offset of 1.
    """
    clip, offset = values.get("clip_sample", True), values.get("steps_offset", 0)
    same = (
        trained % PIPELINE_STEPS == 0
        and values.get("timestep_spacing", "leading") == "leading"
        and offset in (0, 1)
        and not values.get("thresholding")
        and not (clip and values.get("clip_sample_range", 1.0) != 1.0)
    )
    settings = {"respacing": f"ddim{PIPELINE_STEPS}{'+1' if offset == 1 else ''}", "clip_x0": bool(clip)}
    # With clip_sample, diffusers' DDIM clamps x0 but goes on with the unclamped epsilon: no table is the same.
    if same and not clip and values.get("_class_name") == "DDIMScheduler" and values.get("set_alpha_to_one", True):
        return settings | {"sampler": "ddim"}
    variance = VARIANCES.get(_shown(values.get("variance_type", "fixed_small")))
    if same and values.get("_class_name") == "DDPMScheduler" and variance:
        return settings | {"sampler": "ddpm", "variance": variance}
    return {}
