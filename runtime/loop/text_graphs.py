"""What a step reads beside its tables where a model takes prompts: context of each prompt, positions of a size.

Graphs run once per distinct prompt and once per size, each prompt alone and padded to the same number of tokens: what
becomes of one never depends on those beside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from ..bundle.open import Bundle
from ..errors import RequestError
from .engine import Engine
from .prompts import Prompt, check_prompt, text_of

CONTEXT_BYTES = 1 << 30  # of prompts that were used before, kept for later batches; PixArt-Sigma: 77 MB a prompt
SIZES = 16  # of latents whose positions are kept; PixArt-Sigma: 19 MB of the largest


class TextGraphs:
    """The prompts and sizes that were used, of one loaded bundle."""

    def __init__(self, bundle: Bundle, engine: Callable[[str], Engine]) -> None:
        self._bundle, self._engine = bundle, engine
        self._contexts: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # the one used last is the last
        self._of_sizes: dict[tuple[int, int], np.ndarray] = {}  # likewise

    def inputs(
        self, prompts: Sequence[Prompt], latent: tuple[int, int], cancel: threading.Event | None = None
    ) -> dict[str, np.ndarray]:
        """context [P, T, W], context_bias [P, T] and position [h, w, D] of a batch. latent: H, W."""
        found = [self._context(prompt, cancel) for prompt in prompts]
        self._forget({prompt.key for prompt in prompts})
        context, bias = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return {"context": context, "context_bias": bias, "position": self._positions(latent)}

    def hidden(self, prompt: Prompt, cancel: threading.Event | None = None) -> np.ndarray:
        """What the text encoder makes of a prompt: [n, Dh] float32, a row a token."""
        check_prompt(self._bundle, prompt)
        if prompt.hidden is not None:
            return prompt.hidden
        text, ids = text_of(self._bundle), np.array([prompt.ids], dtype=np.int64)
        padded = np.full((1, text.tokens), text.pad, dtype=np.int64)
        padded[:, : prompt.tokens] = ids
        hidden = np.empty((1, text.tokens, text.width), dtype=np.float32)
        inputs = {"ids": padded, "mask": self._mask(prompt)}
        self._engine("text").run(inputs, {"hidden": hidden}, cancel)
        rows = hidden[0, : prompt.tokens]
        if not np.isfinite(rows).all():
            raise RequestError(f"the text encoder overflowed on the prompt {prompt.text!r}: say it in other words")
        return rows

    def _mask(self, prompt: Prompt) -> np.ndarray:
        return (np.arange(text_of(self._bundle).tokens) < prompt.tokens).astype(np.int64)[None]

    def _context(self, prompt: Prompt, cancel: threading.Event | None) -> tuple[np.ndarray, np.ndarray]:
        """[1, T, W] and [1, T] of one prompt, computed once."""
        found = self._contexts.pop(prompt.key, None)
        if found is None:
            text, width = text_of(self._bundle), self._bundle.manifest.context_width
            hidden = np.zeros((1, text.tokens, text.width), dtype=np.float32)
            hidden[0, : prompt.tokens] = self.hidden(prompt, cancel)
            found = np.empty((1, text.tokens, width), np.float32), np.empty((1, text.tokens), np.float32)
            inputs = {"hidden": hidden, "mask": self._mask(prompt)}
            self._engine("context").run(inputs, {"context": found[0], "context_bias": found[1]}, cancel)
        self._contexts[prompt.key] = found
        return found

    def _forget(self, used: set[str]) -> None:
        """The prompts that were used longest ago, where they are too many; none of those `used` now."""
        total = sum(context.nbytes for context, _ in self._contexts.values())
        for key in list(self._contexts):
            if total > CONTEXT_BYTES and key not in used:
                total -= self._contexts.pop(key)[0].nbytes

    def _positions(self, latent: tuple[int, int]) -> np.ndarray:
        position = self._of_sizes.pop(latent, None)
        if position is None:
            row, column = (np.arange(side // text_of(self._bundle).multiple, dtype=np.float32) for side in latent)
            position = np.empty((len(row), len(column), self._bundle.manifest.position_width), np.float32)
            self._engine("position").run({"row": row, "column": column}, {"position": position})
        self._of_sizes[latent] = position
        if len(self._of_sizes) > SIZES:
            del self._of_sizes[next(iter(self._of_sizes))]
        return position
