"""What all images of a run are also of: classes or prompts with weights, from the command line and from metadata."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from ..bundle.open import Bundle
from ..errors import RequestError
from ..loop.prompts import Prompt
from .words import RecordedPrompt, again, recorded, words

Also = tuple[int | Prompt, float]


class RecordedAlso(BaseModel):
    """One of them in a picture's metadata: a class or a prompt."""

    label: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    prompt: RecordedPrompt | None = None
    weight: Annotated[float, Field(allow_inf_nan=False)]


def also_of(texts: Sequence[str], bundle: Bundle, warn: Callable[[str], object]) -> list[Also]:
    """ "in the snow:0.5" -> the prompt, or class, and 0.5; without a weight it is 1. Raises RequestError."""
    pairs = [_weighted(text) for text in texts]
    if bundle.manifest.text is None:
        return [(bundle.label(text), weight) for text, weight in pairs]
    prompts = words(bundle, [text for text, _ in pairs], warn)
    return [(prompt, weight) for prompt, (_, weight) in zip(prompts, pairs, strict=True)]


def _weighted(text: str) -> tuple[str, float]:
    """Text and weight: what follows the last colon, where it is a number."""
    said, colon, last = text.rpartition(":")
    try:
        weight = float(last)
    except ValueError:
        return text, 1.0
    return (said, weight) if colon else (text, 1.0)


def also_recorded(also: Sequence[Also]) -> list[dict[str, Any]]:
    """What a picture remembers."""
    return [
        {"weight": weight, **({"prompt": recorded(of)} if isinstance(of, Prompt) else {"label": of})}
        for of, weight in also
    ]


def also_again(
    picture: Path, bundle: Bundle, found: Sequence[RecordedAlso], warn: Callable[[str], object]
) -> list[Also]:
    """The other way round. Raises RequestError."""
    if bundle.manifest.text is None:
        labels = [one.label for one in found if one.label is not None]
        of: Sequence[int | Prompt] = labels
    else:
        of = again(picture, bundle, [one.prompt for one in found if one.prompt is not None], warn)
    if len(of) != len(found):
        raise RequestError(f"{picture}: its metadata cannot be used (also: not of this kind of model)")
    return [(one, recorded.weight) for one, recorded in zip(of, found, strict=True)]
