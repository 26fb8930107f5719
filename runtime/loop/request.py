"""Which pictures a caller may ask for: labels and seeds, checked before any engine works."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

from ..bundle.manifest import ModelInfo
from ..bundle.open import Bundle
from ..errors import RequestError
from ..samplers.process import check_process
from ..samplers.program import Program


def whole_numbers(what: str, values: Any) -> list[Any]:
    """A list of Python's integers (None stays) from a list, an array or a tensor of them. Raises RequestError."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
        raise RequestError(f"{what}s must be a list of whole numbers, not {values!r}")
    numbers = []
    for value in values:
        try:
            numbers.append(None if value is None else operator.index(value))
        except (TypeError, ValueError):  # an array of one element is an index, one of two is not
            raise RequestError(f"{what} {value!r} is not a whole number") from None
    return numbers


def check_images(
    model: ModelInfo, labels: Sequence[int], seeds: Sequence[int], away_from: Sequence[int | None] | None
) -> None:
    """Raises RequestError unless every image has a label and a seed that the model can have."""
    check_seeds("labels", len(labels), seeds)
    if away_from is not None and len(away_from) != len(labels):
        raise RequestError(
            f"{len(labels)} labels and {len(away_from)} classes to guide away from: give as many of each"
        )
    if None in labels:
        raise RequestError("None among the labels or seeds: give a number for each image")
    for label in [*labels, *(other for other in away_from or () if other is not None)]:
        if not (0 <= label < model.num_classes or label == model.null_class):
            raise RequestError(f"class {label}: the model has classes 0 to {model.num_classes - 1}")


def check_seeds(what: str, count: int, seeds: Sequence[int]) -> None:
    """Raises RequestError unless each of `count` subjects, at least one, has a seed. what: "labels", "prompts"."""
    if not count or count != len(seeds):
        raise RequestError(f"{count} {what} and {len(seeds)} seeds: give at least one, and as many of each")
    if None in seeds:
        raise RequestError("None among the labels or seeds: give a number for each image")
    for seed in seeds:
        if not 0 <= seed < 2**64:
            raise RequestError(f"seed {seed} is not between 0 and 2**64 - 1")


def check_program(bundle: Bundle, program: Program) -> None:
    """Raises RequestError for a program that was made for another prediction, other betas or other timesteps."""
    remedy = "make one for this model, or insist with force_program=True"
    check_process(program.name, program.process, bundle.process, remedy)
