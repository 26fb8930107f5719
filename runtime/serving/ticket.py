"""`Ticket`: one image that somebody waits for, from the queue to its pixels."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..errors import Cancelled, DitedgeError, RequestError
from ..loop.image_run import ImageRun
from ..loop.prompts import Prompt
from ..samplers.program import Program

State = Literal["queued", "running", "decoding", "done", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled")
PRIORITY_SECONDS = 10.0  # a priority is worth so much waiting: who asked for less is late, never forgotten


class LateError(RequestError):
    """An image was not done by its deadline."""


@dataclass(frozen=True)
class Asked:
    """One image as it is asked for. None: the bundle's own, or no such wish.

    priority: one more goes before whatever came up to PRIORITY_SECONDS earlier. deadline: seconds from now on after
    which nobody wants it any more. preview_every: steps from one estimate of the picture to the next.
    """

    subject: int | Prompt  # a class, or what the model is told in words
    seed: int
    program: Program
    guidance: float | None = None
    away_from: int | Prompt | None = None
    size: tuple[int, int] | None = None  # (width, height), of a model that takes prompts
    priority: int = 0
    deadline: float | None = None
    preview_every: int | None = None


@dataclass(frozen=True)
class Estimate:
    """What the picture looks like after so many steps: uint8 [h, w, 1 or 3]."""

    step: int
    image: np.ndarray


@dataclass(eq=False)
class Ticket:
    """Written by the scheduler's threads, read by any; `cancel` from any, too."""

    model: str
    asked: Asked
    run: ImageRun
    number: int = field(default_factory=itertools.count(1).__next__)
    on_end: Callable[[Ticket], object] = lambda ticket: None  # told once
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None  # its first step began
    ended: float | None = None
    ready: bool = True  # to take steps; not before its prompts are encoded
    state: State = "queued"
    step: int = 0
    together: int = 0  # images in its last step, itself among them
    estimate: Estimate | None = None
    image: np.ndarray | None = None  # uint8 [h, w, 1 or 3]
    error: Exception | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)  # set: nobody wants it
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: threading.Event = field(default_factory=threading.Event)
    _listeners: tuple[Callable[[Ticket], None], ...] = ()  # told of each change
    _waiters: tuple[Callable[[Ticket], None], ...] = ()  # of the end alone

    @property
    def steps(self) -> int:
        return self.run.program.steps

    @property
    def rank(self) -> float:
        """The smallest goes first: by age, where nobody has a priority."""
        return self.submitted - PRIORITY_SECONDS * self.asked.priority

    @property
    def wanted(self) -> bool:
        return not self.cancelled.is_set()

    def late(self, now: float) -> bool:
        return self.asked.deadline is not None and now > self.submitted + self.asked.deadline

    def cancel(self) -> None:
        """It takes no further step: one that runs is finished. An image that is there stays."""
        self.cancelled.set()

    def listen(self, told: Callable[[Ticket], None], end_only: bool = False) -> None:
        """told(ticket) after each change from now on, or the end, in the thread that made it; at once after the end.

        A step of many images has many changes: whoever needs none of them costs nothing meanwhile.
        """
        with self._lock:
            if end_only:
                self._waiters = (*self._waiters, told)
            else:
                self._listeners = (*self._listeners, told)
            ended = self.state in ENDED
        if ended:
            told(self)

    def tell(self) -> None:
        """To everybody who listens."""
        for told in self._listeners:
            told(self)

    def end(self, image: np.ndarray | None, error: Exception | None = None) -> None:
        """With an image, or an error; only the first end counts."""
        with self._lock:
            if self.state in ENDED:
                return
            self.image, self.error, self.ended = image, error, time.monotonic()
            self.state = "done" if error is None else "cancelled" if isinstance(error, Cancelled) else "failed"
        self._ended.set()
        self.on_end(self)
        for told in self._waiters:
            told(self)
        self.tell()

    def result(self, timeout: float | None = None) -> np.ndarray:
        """Waits for the image, uint8 [h, w, 1 or 3]. Raises DitedgeError, Cancelled, TimeoutError."""
        if not self._ended.wait(timeout):
            raise TimeoutError(f"no image after {timeout} s")
        if self.error is not None:
            raise self.error
        assert self.image is not None
        return self.image


def sentence_of(error: Exception) -> str:
    """What a caller is told of an error; of a bug its kind alone: the traceback is in the log."""
    known = isinstance(error, (DitedgeError, Cancelled))
    return str(error) if known else f"the server failed ({type(error).__name__}): its log says more"
