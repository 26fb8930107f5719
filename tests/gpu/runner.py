"""Checks one after the other in a process of their own, each with a time budget, and the report.

A check that fails, dies or hangs ends its process, since a CUDA error stays in one: the next check gets a new process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

MARK = "GPU-CHECK "  # begins a line of a child's that is for the parent
START_SECONDS = 40.0  # of a process: imports, CUDA


@dataclass
class Row:
    """One check of the report. figures: as they came in."""

    name: str
    seconds: float  # first its budget, then what it took
    status: str = "left out"
    figures: list[str] = field(default_factory=lambda: ["no time was left"])

    def __str__(self) -> str:
        figures = "; ".join(self.figures).replace("|", "/").replace("\n", " ")
        return f"| {self.name} | {self.status} | {self.seconds:.1f} | {figures} |"


def report(rows: Sequence[Row], about: str) -> str:
    """Markdown."""
    head = "| check | status | seconds | figures |\n|---|---|---|---|"
    passed = sum(row.status == "ok" for row in rows)
    return "\n".join([about, "", head, *map(str, rows), "", f"{passed} of {len(rows)} ok"]) + "\n"


def tell(**message: object) -> None:
    """From a child to its parent."""
    print(MARK + json.dumps(message), flush=True)


def run_here(checks: Sequence[tuple[str, Callable[[], str]]]) -> int:
    """The child: until one fails -> exit status."""
    for name, check in checks:
        tell(begin=name)
        try:
            figures = check()
        except Exception as error:  # whatever it is, it belongs in the report
            tell(failed=f"{type(error).__name__}: {str(error)[:500]}")
            return 1
        tell(ok=figures)
    return 0


def run_all(rows: Sequence[Row], command: Sequence[str], seconds: float, changed: Callable[[], None]) -> None:
    """Fills the rows in. command: starts a child that runs the checks named behind it, by `run_here`.

    seconds: for all together; what does not begin in time is left out. changed: called after each check.
    """
    deadline, waiting = time.monotonic() + seconds, list(rows)
    while waiting and time.monotonic() < deadline:
        done = _run_child(waiting, [*command, *(row.name for row in waiting)], deadline, changed)
        del waiting[:done]


def _run_child(rows: Sequence[Row], command: Sequence[str], deadline: float, changed: Callable[[], None]) -> int:
    """Runs checks until one fails or time ends -> how many rows are filled in, at least one."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        return _follow(child, rows, deadline, changed)
    finally:
        _kill(child)


def _follow(child: subprocess.Popen[str], rows: Sequence[Row], deadline: float, changed: Callable[[], None]) -> int:
    """Fills in what the child tells, and stops it when a check's time is over."""
    timer = _kill_after(child, min(START_SECONDS + rows[0].seconds, deadline - time.monotonic()))
    done, begun = 0, time.monotonic()
    lines = child.stdout
    assert lines is not None
    for line in lines:
        if not line.startswith(MARK):
            print(line, end="", file=sys.stderr, flush=True)
            continue
        message = json.loads(line[len(MARK) :])
        row = rows[done]
        if "begin" in message:
            timer.cancel()
            begun, row.figures = time.monotonic(), []
            timer = _kill_after(child, min(row.seconds, deadline - begun))
        elif "say" in message:
            row.figures.append(message["say"])
        else:
            row.status = "ok" if "ok" in message else "**failed**"
            row.figures += [text for text in message.values() if text]
            row.seconds, done = time.monotonic() - begun, done + 1
            changed()
            if row.status != "ok" or done == len(rows):
                break  # not at the end of the pipe, which a process that the child started may hold
    status = child.wait()
    timer.cancel()
    lines.close()
    if done < len(rows) and (done == 0 or rows[done - 1].status == "ok"):  # it died in the middle
        took = time.monotonic() - begun
        end = f"stopped after {took:.0f} s" if status == -signal.SIGKILL else f"exit status {status}"
        row = rows[done]
        row.status, row.seconds, done = "**failed**", took, done + 1
        row.figures = [*(text for text in row.figures if not text.startswith("no time")), end]
        changed()
    return done


def _kill_after(child: subprocess.Popen[str], seconds: float) -> threading.Timer:
    timer = threading.Timer(max(seconds, 0.1), _kill, [child])
    timer.daemon = True
    timer.start()
    return timer


def _kill(child: subprocess.Popen[str]) -> None:
    """With every process that it started: compilers, compute-sanitizer."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def written(rows: Sequence[Row], about: str, path: Path | None) -> Callable[[], None]:
    """A `changed` for `run_all`: the report in a file, as far as it is, whatever ends the run."""

    def write() -> None:
        if path is not None:
            path.write_text(report(rows, about))

    return write
