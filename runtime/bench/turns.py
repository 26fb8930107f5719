"""Times parts of several contenders in turns, each in a process of its own, so that thread pools do not disturb.

A contender is a command whose process calls `serve(make)`. Rounds are interleaved (A, B, C, A, B, C, ...): whatever
else the machine does hits all of them alike, and ratios are taken within a round. Who does not have the turn is
stopped by a signal, so that no library's idle threads spin beside the one that is timed.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ditedge

from ..errors import DitedgeError, EngineError
from ..report import Report, silent

PAUSE = 0.02  # seconds before each measurement, for the system to settle after the contender before
SHORTEST = 0.05  # seconds: quicker parts are called several times within a round, so that the pipe does not count
LEAST_ROUNDS = 3  # whatever the time limit
STOPPABLE = hasattr(signal, "SIGSTOP")  # not on Windows

Part = Callable[[], object]  # called once a lap; a float that it returns is the seconds to count, instead of the call's


@dataclass(frozen=True)
class Made:
    """What a contender has made ready. facts: JSON, for its parent. load_seconds: None where all was loading."""

    parts: Mapping[str, Part]
    facts: Mapping[str, Any] = field(default_factory=dict)
    load_seconds: float | None = None


@dataclass(frozen=True)
class Laps:
    """What one contender took. calls: by part, by round, the seconds of each call in it.

    peak_bytes: resident memory of its process at most. busy: by part, processors in use meanwhile, on average.
    """

    calls: Mapping[str, list[list[float]]]
    peak_bytes: int
    load_seconds: float
    busy: Mapping[str, float]
    facts: Mapping[str, Any]
    first: Mapping[str, float] = field(default_factory=dict)  # seconds of the first call of all, by part

    def rounds(self, part: str) -> list[float]:
        """Seconds a call, of each round."""
        return [sum(calls) / len(calls) for calls in self.calls[part]]


def take_turns(
    commands: Sequence[Sequence[str]],
    rounds: int,
    report: Report = silent,
    *,
    seconds: float = 0.0,
    environments: Sequence[Mapping[str, str]] = (),
) -> list[Laps | EngineError]:
    """Runs every command as a contender -> what each took, or why it failed: the others go on.

    seconds: no round begins later than this after the first one, once there are some; 0 is no limit.
    environments: variables of each command beside those of this process.
    """
    with ExitStack() as stack:
        runners = []
        for i, command in enumerate(commands):
            report("loading", i + 1, len(commands))
            own = environments[i] if environments else {}
            runners.append(stack.enter_context(closing(_Runner(command, own))))
        begun = time.monotonic()
        for i in range(rounds):
            if seconds and i >= LEAST_ROUNDS and time.monotonic() - begun > seconds:
                break
            for j, runner in enumerate(runners):
                runner.round()
                report("timing", i * len(runners) + j + 1, rounds * len(runners))
        return [runner.result() for runner in runners]


def interleave(commands: Sequence[Sequence[str]], rounds: int, report: Report = silent) -> list[Laps]:
    """As `take_turns`, of contenders that have to work. Raises EngineError when one fails."""
    done = []
    for found in take_turns(commands, rounds, report):
        if isinstance(found, EngineError):
            raise found
        done.append(found)
    return done


class _Runner:
    """A contender from its start to its end: what it took so far, or how it failed."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.failure: EngineError | None = None
        self._worker = _Worker(command, environment)
        self._calls: dict[str, list[list[float]]] = {}
        self._repeats: dict[str, int] = {}
        self._ready: dict[str, Any] = {}
        self._used: dict[str, list[float]] = {}  # seconds of laps, and of processors in them
        self._peak = 0
        self._guarded(self._load)

    def _load(self) -> None:
        self._ready = self._worker.receive()
        for part, first in self._ready["parts"].items():
            self._calls[part], self._used[part] = [], [0.0, 0.0]
            self._repeats[part] = min(1000, max(1, round(SHORTEST / max(first, 1e-6) + 0.5)))

    def round(self) -> None:
        """One lap of each part."""
        if self.failure is None:
            time.sleep(PAUSE)
            self._guarded(self._laps)

    def _laps(self) -> None:
        for part, repeat in self._repeats.items():
            reply = self._worker.ask([part, repeat])
            self._calls[part].append(reply["seconds"])
            self._peak = max(self._peak, reply["peak_bytes"])
            self._used[part] = [self._used[part][0] + reply["wall"], self._used[part][1] + reply["cpu"]]

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            with self._worker.turn():
                work()
        except EngineError as error:
            self.failure = error

    def result(self) -> Laps | EngineError:
        if self.failure is not None:
            return self.failure
        busy = {part: cpu / max(wall, 1e-9) for part, (wall, cpu) in self._used.items()}
        ready = self._ready
        return Laps(self._calls, self._peak, ready["load_seconds"], busy, ready["facts"], ready["first"])

    def close(self) -> None:
        self._worker.close()


class _Worker:
    """The parent's end of a contender's process."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **environment},
        )

    def turn(self) -> closing[_Turn]:
        return closing(_Turn(self._process))

    def ask(self, request: list[Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # receive says what the process left
        return self.receive()

    def receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().split("\n")[-1]
            raise EngineError(f"the process that measures the speed ended: {last or 'no message'}; out of memory?")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise EngineError(reply["error"])
        return reply

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass


class _Turn:
    """The process runs until `close`, and is stopped then."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._signal("SIGCONT")

    def close(self) -> None:
        self._signal("SIGSTOP")

    def _signal(self, name: str) -> None:
        if STOPPABLE:
            self._process.send_signal(getattr(signal, name))  # nothing happens where it has ended


def serve(make: Callable[[], Made]) -> None:
    """The child's end: makes the parts, warms each up, then answers each line [part, N] with the seconds of N calls."""
    _end_with_parent()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is not a reply
    try:
        begun, made = time.perf_counter(), make()
        load = time.perf_counter() - begun if made.load_seconds is None else made.load_seconds
        warm = {name: _warm(part) for name, part in made.parts.items()}
        first, second = ({name: both[i] for name, both in warm.items()} for i in range(2))
        ready = {"load_seconds": load, "first": first, "parts": second, "facts": dict(made.facts)}
        replies.write(json.dumps(ready) + "\n")
        for part, count in map(json.loads, sys.stdin):
            begun, cpu = time.perf_counter(), time.process_time()
            seconds = _calls(made.parts[part], count)
            wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
            replies.write(
                json.dumps({"seconds": seconds, "wall": wall, "cpu": cpu, "peak_bytes": peak_memory()}) + "\n"
            )
    except Exception as error:  # of any library: it is this contender's end, and the parent goes on with the others
        kind = "" if isinstance(error, DitedgeError) else f"{type(error).__name__}: "
        replies.write(json.dumps({"error": kind + " ".join(str(error).split())[:500]}) + "\n")


def _warm(part: Part) -> tuple[float, float]:
    """Seconds of the first call and of the second one, whatever it counts."""
    marks = [time.perf_counter()]
    for _ in range(2):
        part()
        marks.append(time.perf_counter())
    return marks[1] - marks[0], marks[2] - marks[1]


def _calls(part: Part, count: int) -> list[float]:
    """Seconds of each of so many calls."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        told = part()
        seconds.append(told if isinstance(told, float) else time.perf_counter() - start)
    return seconds


def _end_with_parent() -> None:
    """Linux kills this process with its parent, also while it is stopped and reads no pipe."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def peak_memory() -> int:
    """Bytes of resident memory that this process had at most.

    From Linux's VmHWM: getrusage's figure starts at the parent's size, because it survives exec.
    """
    for line in _lines(Path("/proc/self/status")):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text().splitlines()
    except OSError:
        return


def isolated(module: str, arguments: list[str]) -> list[str]:
    """The command that runs a module of ours in a fresh interpreter, which imports nothing from the working folder.

    `python -m` would put that folder first on the path, and PYTHONPATH and the user's site may name it: a downloaded
    bundle that carries numpy.py would run. The child gets this process's own path, less the working folder.
    """
    root, here = str(Path(ditedge.__file__).parents[1]), os.getcwd()
    path = [root, *(entry for entry in sys.path if entry not in ("", root) and os.path.abspath(entry) != here)]
    code = "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); " + (
        "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
    )
    return [sys.executable, "-I", "-c", code, json.dumps(path), module, *arguments]
