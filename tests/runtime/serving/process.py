"""`ditedge serve` as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

SECONDS = 300  # that a test waits for what takes a second
PACED = """
import sys, time
from ditedge.runtime.loop.session import Session
advance = Session.advance
Session.advance = lambda *given, **more: (time.sleep({pace} if given[1] else 0), advance(*given, **more))[1]
from ditedge.__main__ import main
main("ditedge")
"""


@dataclass
class Server:
    """address: http://127.0.0.1:PORT. log: its standard error."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def end(self, number: int = signal.SIGTERM) -> int:
        """The exit code."""
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


@contextmanager
def serving(log: Path, *arguments: object, pace: float = 0.0) -> Iterator[Server]:
    """Listens when the block begins, on a port that was free.

    pace: seconds that a step takes at least, for tests of what happens while an image is sampled.
    """
    program = ["-c", PACED.format(pace=pace)] if pace else [ROOT / "cli.py"]
    command = [sys.executable, *program, "serve", "--port", 0, "--threads", 1, *arguments]
    command += ["--images-per-call", 4]  # instead of measuring
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as written:
        process = subprocess.Popen([str(part) for part in command], stderr=written, stdout=written, env=environment)
    try:
        yield Server(process, _address(process, log), log)
    finally:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """What it says when it listens."""
    for _ in range(SECONDS * 20):
        found = re.search(r"serving .* on (http://\S+);", log.read_text())
        if found is not None:
            return found[1]
        assert process.poll() is None, log.read_text()
        with_patience(process)
    raise AssertionError(f"it did not listen: {log.read_text()}")


def with_patience(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(0.05)
    except subprocess.TimeoutExpired:
        pass
