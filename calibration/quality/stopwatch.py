"""Times steps of several contenders in turns, each in a process of its own, so that thread pools do not disturb.

A contender is a command whose process calls `serve(step)`. Rounds are interleaved (A, B, C, A, B, C, ...): whatever
else the machine does hits all of them alike, and ratios are taken within a round.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ditedge

from ...runtime.bundle.open import open_bundle
from ...runtime.errors import BundleError, DitedgeError, EngineError
from ...runtime.loop.engine import EngineOptions
from ...runtime.loop.loop import first_state
from ...runtime.loop.noise import SeededNoise
from ...runtime.loop.session import Session
from ...runtime.report import Report, silent
from ..pool import any_pool

PAUSE = 0.05  # seconds before each measurement: idle threads of the previous contender stop spinning
SHORTEST = 0.05  # seconds: quicker steps are repeated within a round, so that the clock and the pipe do not count


@dataclass(frozen=True)
class Laps:
    """What one contender took. seconds [rounds] per step; peak_bytes: resident memory of its process at most."""

    seconds: np.ndarray
    peak_bytes: int


def interleave(commands: Sequence[Sequence[str]], rounds: int, report: Report = silent) -> list[Laps]:
    """Runs every command as a contender. Raises EngineError when one fails."""
    workers: list[_Worker] = []
    try:
        for command in commands:
            workers.append(_Worker(command))
        for worker in workers:
            worker.receive()  # loaded and warm
        first = [worker.lap(1)["seconds"] for worker in workers]
        repeats = [max(1, int(np.ceil(SHORTEST / seconds))) for seconds in first]
        seconds = np.empty((len(workers), rounds))
        for i in range(rounds):
            for j, worker in enumerate(workers):
                time.sleep(PAUSE)
                seconds[j, i] = worker.lap(repeats[j])["seconds"] / repeats[j]
                report("timing", i * len(workers) + j + 1, rounds * len(workers))
        peaks = [int(worker.lap(1)["peak_bytes"]) for worker in workers]
    finally:
        for worker in workers:
            worker.close()
    return [Laps(row, peak) for row, peak in zip(seconds, peaks, strict=True)]


class _Worker:
    """The parent's end of a contender's process."""

    def __init__(self, command: Sequence[str]) -> None:
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def lap(self, repeat: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"%d\n" % repeat)
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


def serve(make_step: Callable[[], Callable[[], None]]) -> None:
    """The child's end: makes the step, warms up, then answers each line "N" with the seconds of N steps."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is not a reply
    try:
        step = make_step()
        step()
        step()
    except DitedgeError as error:
        replies.write(json.dumps({"error": str(error)}) + "\n")
        return
    replies.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        seconds = time.perf_counter() - start
        replies.write(json.dumps({"seconds": seconds, "peak_bytes": peak_memory()}) + "\n")


def peak_memory() -> int:
    """Bytes of resident memory that this process had at most.

    From Linux's VmHWM: getrusage's figure starts at the parent's size, because it survives exec.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def bundle_contender(
    folder: Path, options: EngineOptions, batch: int, guidance: float, sha256: str | None = None
) -> list[str]:
    """The command that times the step graph of a bundle: one step of its default program, in the middle.

    sha256: of the manifest, where the caller has opened the bundle: the process runs no other one.
    """
    settings = {
        "provider": options.provider,
        "threads": options.threads,
        "spin": options.spin,
        "batch": batch,
        "guidance": guidance,
        "sha256": sha256,
    }
    return isolated("ditedge.calibration.quality.stopwatch", [str(folder.absolute()), json.dumps(settings)])


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


def bundle_step(
    folder: Path, options: EngineOptions, batch: int, guidance: float, sha256: str | None = None
) -> Callable[[], None]:
    """A function that runs one step of the bundle, all inputs ready. guidance 1: one evaluation per image, else two.

    sha256: of the manifest that it has to be. Whoever knows it has seen to the signature.
    """
    bundle = open_bundle(folder, trusted_keys=None if sha256 is None else ())
    if sha256 not in (None, bundle.sha256):
        raise BundleError(f"{folder} was replaced while its speed was measured: compare again")
    program, model, session = bundle.program(), bundle.manifest.model, Session(bundle, options)
    pool, middle, noise = any_pool(bundle), program.steps // 2, SeededNoise(list(range(batch)), model.latent_shape)
    tables, state = pool.tables(bundle, program, pool.cycled(0, batch), guidance), first_state(program, noise)
    inputs = session.step_inputs(tables, middle, state, noise.step(middle))
    outputs, engine = {"next_state": np.empty_like(state)}, session.engine("step")
    return lambda: engine.run(inputs, outputs)


def _main() -> None:
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    options = EngineOptions(settings["provider"], settings["threads"], settings["spin"])
    serve(lambda: bundle_step(folder, options, settings["batch"], settings["guidance"], settings["sha256"]))


if __name__ == "__main__":
    _main()
