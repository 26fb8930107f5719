"""What the reader of a family of networks makes of a state dict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...runtime.errors import CheckpointError
from ..networks.dit import DiTConfig
from .settings import Settings


@dataclass(frozen=True)
class Described:
    """A network's weights under its module's names, and what else is known of it: None or empty where nothing is."""

    tensors: dict[str, Tensor]
    config: DiTConfig
    said: str  # what else than shapes its hyper-parameters come from
    prediction: str | None = None  # None: the settings say it, or nothing does
    guided_channels: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)  # settings of `make_program`
    guidance: float | None = None
    notes: tuple[str, ...] = ()


def check_said(settings: Settings, actual: dict[str, Any]) -> None:
    """Raises CheckpointError for the first setting that contradicts what the keys say, with both values."""
    for name, value in actual.items():
        if settings.values.get(name, value) != value:
            raise CheckpointError(
                f"{settings.said(name)} contradicts the keys, which say {value}: these settings are of another "
                "network; save the state dict alone, or move the settings' file away"
            )


def refuse_keys(state: dict[str, Tensor], variants: dict[str, str], family: str) -> None:
    """Raises CheckpointError for a variant that is not supported. variants: start of its keys -> its name."""
    for start, name in variants.items():
        key = next((key for key in state if key.startswith(start)), None)
        if key is not None:
            raise CheckpointError(f"key '{key}': {family} with {name} is not supported")


def left_out(state: dict[str, Tensor], *starts: str) -> tuple[dict[str, Tensor], int]:
    """The state dict without keys that begin so, and how many parameters those are."""
    dropped = [key for key in state if key.startswith(starts)]
    numbers = sum(state[key].numel() for key in dropped if state[key].is_floating_point())
    return {key: tensor for key, tensor in state.items() if key not in dropped}, numbers
