"""Every failure a user can mend.

DitedgeError                 exit code 2, one line, no traceback
├── BundleError              a bundle is damaged, tampered with, or from another version
├── ProgramError             a sampler table or its settings make no sense
├── RequestError             labels, seeds, guidance or files that do not fit the bundle
├── EngineError              an engine library is missing, or refuses the graph
├── NotFiniteError           pictures overflowed; those that did not come with it; exit code 1
└── CheckpointError          a checkpoint that cannot be read as a DiT
Cancelled                    sampling stopped because the caller asked for it

Anything else that is raised is a bug and keeps its traceback. Messages name the file, the value and the remedy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class DitedgeError(Exception):
    """Something the user can mend; the message is one sentence or two."""


class BundleError(DitedgeError):
    """A bundle is damaged, tampered with, or from another version."""


class ProgramError(DitedgeError):
    """A sampler table or its settings make no sense."""


class RequestError(DitedgeError):
    """Labels, seeds, guidance or files that do not fit the bundle."""


class EngineError(DitedgeError):
    """An engine library is missing, or refuses the graph."""


@dataclass(frozen=True)
class BrokenImage:
    """A picture whose numbers are infinite or not numbers."""

    index: int
    label: int | None  # None: it was made from a prompt
    seed: int | None  # None: its noise was given
    step: int | None  # the first after which it was so, from 1 on; None: nobody looked


class NotFiniteError(DitedgeError):
    """Pictures overflowed.

    images: which. results: what `generate` would have returned; of the broken ones pictures are black, latents as they
    are. summary: of `run_bundle`, which has written the good ones.
    """

    def __init__(self, message: str, images: tuple[BrokenImage, ...], results: Any) -> None:
        super().__init__(message)
        self.images, self.results = images, results
        self.summary: dict[str, Any] = {}


class CheckpointError(DitedgeError):
    """A checkpoint that cannot be read as a DiT."""


class Cancelled(Exception):
    """Sampling stopped because the caller asked for it."""


def first_line(error: Exception) -> str:
    """What a library says, in one line of bounded length; the kind of its exception where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
