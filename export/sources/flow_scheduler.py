"""A flow pipeline's scheduler, as the field `flow` of a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from ...runtime.errors import CheckpointError
from ...runtime.samplers.flow_settings import FlowInfo, SizeShift
from .scheduler_config import read_scheduler_json

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
# Settings of it that no table of ours has, and the only value that is read; defaults are those of diffusers 0.42.
ELSE = {
    "invert_sigmas": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "stochastic_sampling": False,
    "shift_terminal": None,
}


def read_flow(path: Path | None, default: FlowInfo) -> FlowInfo:
    """What `scheduler_config.json` says; default: where there is no file, and its spacing. Raises CheckpointError."""
    if path is None:
        return default
    values = read_scheduler_json(path, CheckpointError)
    if not isinstance(values, dict) or values.get("_class_name") != SCHEDULER:
        name = values.get("_class_name") if isinstance(values, dict) else None
        raise CheckpointError(f"{path}: '_class_name' is {str(name)[:60]!r}, this family is sampled with {SCHEDULER}")
    for key, value in ELSE.items():
        if values.get(key, value) not in (value, None, 0):
            raise CheckpointError(f"{path}: '{key}' is {str(values[key])[:40]!r}: only {value!r} is read")
    try:
        return _flow(values, default.spacing)
    except ValidationError as error:
        first = error.errors()[0]
        field = f"{first['loc'][-1]}: " if first["loc"] else ""
        raise CheckpointError(f"{path}: its shift makes no sense ({field}{first['msg']})") from None


def _flow(values: dict[str, Any], spacing: Literal["even", "trained"]) -> FlowInfo:
    trained, shift = values.get("num_train_timesteps", 1000), values.get("shift", 1.0)
    if not values.get("use_dynamic_shifting", False):
        return FlowInfo(shift=_number(shift), spacing=spacing, trained=trained)
    by_size = SizeShift(
        base_tokens=values.get("base_image_seq_len", 256),
        base_mu=_number(values.get("base_shift", 0.5)),
        most_tokens=values.get("max_image_seq_len", 4096),
        most_mu=_number(values.get("max_shift", 1.15)),
        kind=values.get("time_shift_type", "exponential"),
    )
    return FlowInfo(by_size=by_size, spacing=spacing, trained=trained)


def _number(value: Any) -> Any:
    """A whole number as the float that it stands for; whatever else it is, pydantic says."""
    return float(value) if type(value) is int else value
