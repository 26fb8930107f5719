"""What a step reads beside its tables where a model takes prompts: context of each prompt, positions of a size.

Graphs run once per distinct prompt and once per size, each prompt alone and padded to the same number of tokens: what
becomes of one never depends on those beside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..bundle.open import Bundle
from ..bundle.sizes import text_of
from ..bundle.text_info import EncoderInfo
from ..errors import RequestError
from .engine import Engine
from .prompts import Prompt, check_prompt

CONTEXT_BYTES = 1 << 30  # of prompts that were used before, kept for later batches; PixArt-Sigma: 77 MB a prompt
SIZES = 16  # of latents whose positions are kept; PixArt-Sigma: 19 MB of the largest
MADE = ("context", "context_bias", "vector")  # of a prompt by the graph `context`: what of them the model has

Arrays = dict[str, np.ndarray]


class TextGraphs:
    """The prompts and sizes that were used, of one loaded bundle."""

    def __init__(self, bundle: Bundle, engine: Callable[[str], Engine]) -> None:
        self._bundle, self._engine = bundle, engine
        self._contexts: dict[str, Arrays] = {}  # the one used last is the last
        self._of_sizes: dict[tuple[int, int], np.ndarray] = {}  # likewise
        self._batches: dict[tuple[str, ...], Arrays] = {}  # likewise: end to end, by prompts of a batch; whoever steps
        self._lock = threading.Lock()  # of `_contexts`

    def inputs(
        self, prompts: Sequence[Prompt], latent: tuple[int, int], cancel: threading.Event | None = None
    ) -> Arrays:
        """context [P, T, W] of a batch, and context_bias [P, T], vector [P, Q], position [h, w, Dp] where the model has
        them. latent: H, W. Arrays of the same prompts are the same ones as long as they are kept."""
        return self.joined(prompts, lambda prompt: self.context(prompt, cancel), latent)

    def joined(self, prompts: Sequence[Prompt], of: Callable[[Prompt], Arrays], latent: tuple[int, int]) -> Arrays:
        """`inputs` by the context of each prompt; nothing where there are none."""
        if not prompts:
            return {}
        told = self._together(prompts, of)
        return told | ({"position": self._positions(latent)} if "position" in self._bundle.manifest.graphs else {})

    def _together(self, prompts: Sequence[Prompt], of: Callable[[Prompt], Arrays]) -> Arrays:
        """The contexts of a batch end to end: gathered once while its prompts are the same, step after step."""
        keys = tuple(prompt.key for prompt in prompts)
        told = self._batches.pop(keys, None)
        if told is None:
            found = [of(prompt) for prompt in prompts]
            told = found[0] if len(found) == 1 else {n: np.concatenate([own[n] for own in found]) for n in found[0]}
        self._batches[keys] = told
        while len(self._batches) > 1 and _bytes(self._batches) > CONTEXT_BYTES:
            del self._batches[next(iter(self._batches))]
        return told

    def rows(self, prompt: Prompt, cancel: threading.Event | None = None) -> Arrays:
        """What the text encoders make of a prompt: hidden [n, Dh] float32, a row a token, pooled [Dp], hidden_2 ..."""
        check_prompt(self._bundle, prompt)
        if prompt.rows is not None:
            return dict(prompt.rows)
        rows: Arrays = {}
        for (suffix, info), ids in zip(text_of(self._bundle).encoders.items(), prompt.ids or (), strict=True):
            rows |= self._encoded(suffix, info, ids, prompt.negative, cancel)
        if not all(np.isfinite(values).all() for values in rows.values()):
            raise RequestError(f"the text encoder overflowed on the prompt {prompt.text!r}: say it in other words")
        return rows

    def _encoded(
        self, suffix: str, info: EncoderInfo, ids: Sequence[int], negative: bool, cancel: threading.Event | None
    ) -> Arrays:
        most = info.most(negative)
        padded = np.full((1, most), info.pad, dtype=np.int64)
        padded[0, : len(ids)] = ids
        shapes = {name: (most, *shape[1:]) if len(shape) == 2 else shape for name, shape in info.rows("", None).items()}
        made = {name: np.empty((1, *shape), np.float32) for name, shape in shapes.items()}
        self._engine(f"text{suffix}").run({"ids": padded, "mask": _mask(most, len(ids))}, made, cancel)
        wanted = info.rows("", len(ids))
        rows = {name: values[0, : wanted[name][0]] for name, values in made.items()}
        if info.instruction is not None and not negative and "hidden" in rows:
            rows["hidden"] = np.delete(rows["hidden"], slice(1, 1 + info.instruction.left_out), axis=0)
        return {f"{name}{suffix}": values for name, values in rows.items()}

    def context(self, prompt: Prompt, cancel: threading.Event | None = None) -> Arrays:
        """What the graph `context` makes of one prompt, [1, ...] each, computed once.

        For one thread at a time; `known` is for any."""
        found = self.known(prompt)
        if found is None:
            text, rows, given = text_of(self._bundle), self.rows(prompt, cancel), {}
            for suffix, info in text.encoders.items():
                for name, shape in info.rows(suffix, None).items():
                    given[name] = np.zeros((1, *shape), dtype=np.float32)
                    given[name][0, : len(rows[name])] = rows[name]
                    if info.masked and len(shape) == 2:
                        given[f"mask{suffix}"] = _mask(info.tokens, len(rows[name]))
            found = {name: np.empty(shape, np.float32) for name, shape in self._shapes().items()}
            self._engine("context").run(given, found, cancel)
            with self._lock:
                self._contexts[prompt.key] = found
                self._forget()
        return found

    def known(self, prompt: Prompt) -> Arrays | None:
        """`context` of one that was used before, unless it is forgotten. From any thread."""
        with self._lock:
            found = self._contexts.pop(prompt.key, None)
            if found is not None:
                self._contexts[prompt.key] = found
            return found

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """By name the shapes of what the graph `context` makes of one prompt."""
        shapes, tokens = {}, text_of(self._bundle).tokens  # T, where the graph takes any
        for name in MADE:
            shape = self._bundle.manifest.output_shape("context", name)
            if shape is not None:
                shapes[name] = (1, *(tokens if size is None else size for size in shape[1:]))
        return shapes

    def _forget(self) -> None:
        """The prompts that were used longest ago, where they are too many; never the last."""
        total = _bytes(self._contexts)
        for key in list(self._contexts)[:-1]:
            if total > CONTEXT_BYTES:
                total -= self._contexts.pop(key)["context"].nbytes

    def _positions(self, latent: tuple[int, int]) -> np.ndarray:
        position = self._of_sizes.pop(latent, None)
        if position is None:
            row, column = (np.arange(side // text_of(self._bundle).multiple, dtype=np.float32) for side in latent)
            width = (self._bundle.manifest.output_shape("position", "position") or ())[-1]
            position = np.empty((len(row), len(column), width or 0), np.float32)
            self._engine("position").run({"row": row, "column": column}, {"position": position})
        self._of_sizes[latent] = position
        if len(self._of_sizes) > SIZES:
            del self._of_sizes[next(iter(self._of_sizes))]
        return position


def _bytes(kept: Mapping[Any, Arrays]) -> int:
    return sum(own["context"].nbytes for own in kept.values())


def _mask(tokens: int, words: int) -> np.ndarray:
    """[1, tokens] int64."""
    return (np.arange(tokens) < words).astype(np.int64)[None]
