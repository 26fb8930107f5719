"""Ctrl-C, SIGTERM and SIGHUP: a command ends in one line, and what it had begun is removed.

Nothing but the standard library may be imported here: the handlers must be in place before anything else is.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

_last: int | None = None


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command; `code` is the exit code that a shell gives to it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


def interrupted() -> int | None:
    """The exit code of the signal that came last, None when none did.

    For who catches any other exception: a signal in the middle of an import or a callback of a C library may come out
    as that library's error ("initialization failed").
    """
    return _last


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


def interruption_sentence() -> str:
    """What an interrupted command says: whether it came before the result, after it, or between several."""
    replacing = sys.modules.get("ditedge.runtime.replacing")  # not imported: nothing can be written yet
    written = replacing.placed() if replacing is not None else []
    if not written:
        return "Interrupted: no result was written."
    names = ", ".join(map(str, written[-5:]))
    text = f"Interrupted: {names} {'was' if len(written) == 1 else 'were'} already written."
    return "".join(letter if letter.isprintable() else "?" for letter in text)  # for a terminal


def leave(number: int, _: FrameType | None = None) -> None:
    """Ends the process now, in one line."""
    os.write(2, f"{interruption_sentence()}\n".encode())
    os._exit(128 + number)


def _raise(number: int, _: FrameType | None) -> None:
    global _last
    _last = 128 + number
    raise Interrupted(number)
