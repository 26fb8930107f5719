"""Long calls into a library that Ctrl-C, another signal or another thread can still stop.

Python runs a signal's handler on the main thread, and not before a call of C has returned: a step that takes minutes
would hear nothing. So the call is made on a thread of its own, while the caller waits where signals reach it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

POLL_SECONDS = 0.05  # how soon `cancel` is seen; the end of the call itself is seen at once


@dataclass
class _Call:
    work: Callable[[], None]
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


class Worker:
    """A thread that makes one call after another, until this object is gone."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        threading.Thread(target=_serve, args=(self._calls,), name="ditedge-engine", daemon=True).start()
        weakref.finalize(self, self._calls.put, None)

    def run(self, work: Callable[[], None], stop: Callable[[], None], cancel: threading.Event | None = None) -> None:
        """Makes the call and waits for its end. Raises what it raises.

        stop: makes the call end soon, from this thread: called once `cancel` is set, and when a signal's handler raises
        here. Then the call's end is awaited, too, until a second signal: `work` holds what the call still uses.
        """
        call = _Call(work)
        self._calls.put(call)
        try:
            while not call.done.wait(POLL_SECONDS):
                if cancel is not None and cancel.is_set():
                    stop()
        except BaseException:
            stop()
            call.done.wait()
            raise
        if call.error is not None:
            raise call.error


def _serve(calls: SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        try:
            call.work()
        except BaseException as error:
            call.error = error
        call.done.set()
        del call  # and what it holds
