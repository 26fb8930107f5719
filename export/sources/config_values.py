"""Values of a diffusers config.json, each checked by a sentence that names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...runtime.errors import CheckpointError


def count(values: dict[str, Any], defaults: dict[str, Any], key: str, most: int = 1 << 14) -> int:
    """A whole number of a config.json. Raises CheckpointError."""
    value = values.get(key, defaults[key])
    if type(value) is not int or not 1 <= value <= most:
        raise CheckpointError(f"'{key}' is {str(value)[:40]!r}, not a number from 1 to {most}")
    return value


def above(values: dict[str, Any], key: str, default: float, most: float) -> float:
    """A number above 0. Raises CheckpointError."""
    value = values.get(key, default)
    if type(value) not in (int, float) or not 0 < value < most:
        raise CheckpointError(f"'{key}' is {str(value)[:40]!r}, not a number between 0 and {most:g}")
    return float(value)


def check_fixed(values: dict[str, Any], fixed: dict[str, Any], what: str) -> None:
    """What a class leaves open has the only value that is read. Raises CheckpointError. what: "a PixArt"."""
    for key, value in fixed.items():
        if values.get(key, value) != value:
            raise CheckpointError(f"'{key}' is {values[key]!r}: {what} has {value!r}")


def check_none(problems: Mapping[str, object]) -> None:
    """Sentences, and whether each is so. Raises CheckpointError with the first that is."""
    for problem, found in problems.items():
        if found:
            raise CheckpointError(problem)


def are_axes(value: Any, head: int, axes: int = 3) -> bool:
    """Whether they are numbers of a head of so many that turn with each of the axes, all of them together."""
    return (
        isinstance(value, list | tuple)
        and len(value) == axes
        and all(type(size) is int and size > 0 and size % 2 == 0 for size in value)
        and sum(value) == head
    )


def has_places(value: Any, words: int, tokens: int) -> bool:
    """Whether positions have so many places along the first of three axes, and along the others."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(type(places) is int for places in value)
        and value[0] >= words
        and min(value[1:]) >= tokens
    )
