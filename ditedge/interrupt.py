"""Ctrl-C, SIGTERM and SIGHUP: a command ends in one line, and what it had begun is removed.

Nothing but the standard library may be imported here: the handlers must be in place before anything else is.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SENTENCE = "Interrupted: no result was written."


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command; `code` is the exit code that a shell gives to it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


def handle_signals() -> None:
    """The signals raise Interrupted from now on. One that the caller told us to ignore (nohup) stays ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)


@contextmanager
def importing() -> Iterator[None]:
    """Around imports that take long: there a signal ends the process at once, in one line.

    Nothing is begun yet, and C extensions swallow an exception of a handler, or print it. Without `handle_signals`
    before it (in a program that calls the command line as a function), this does nothing.
    """
    ours = [number for number in SIGNALS if signal.getsignal(number) is _raise]
    for number in ours:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, _raise)


def leave(number: int, _: FrameType | None = None) -> None:
    """Ends the process now, in one line."""
    os.write(2, f"{SENTENCE}\n".encode())
    os._exit(128 + number)


def _raise(number: int, _: FrameType | None) -> None:
    raise Interrupted(number)
