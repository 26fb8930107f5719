"""`sample-set` in which somebody dies after so many batches, as a process of its own.

    python -m tests.runtime.sets.killing worker=5 driver=30 sample-set ...
    python -m tests.runtime.sets.killing node=5 raylet=4711 sample-set ...

A worker of Ray is killed when 5 batches are written, and the process itself after 30; or a node: its raylet, which is
the process 4711, and whatever runs below it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def below(pid: int) -> Iterator[int]:
    """Processes that it began, and theirs."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == pid:
            yield int(stat.parent.name)
            yield from below(int(stat.parent.name))


def workers(pid: int) -> list[int]:
    """Ray's, of a driver, that sample."""
    names = {one: Path(f"/proc/{one}/cmdline") for one in below(pid)}
    return [one for one, path in names.items() if path.exists() and b"Worker" in path.read_bytes()[:200]]


def main() -> None:
    from ditedge.__main__ import main as entry
    from ditedge.runtime.sets.places import Pngs

    after = {}
    while "=" in sys.argv[1]:
        who, _, count = sys.argv.pop(1).partition("=")
        after[who] = int(count)
    write, written = Pngs.write, 0

    def writing(*given: Any) -> None:
        nonlocal written
        write(*given)
        written += 1
        if written == after.get("worker"):
            os.kill(workers(os.getpid())[0], signal.SIGKILL)
        if written == after.get("node"):
            for one in [after["raylet"], *below(after["raylet"])]:
                os.kill(one, signal.SIGKILL)
        if written == after.get("driver"):
            os.kill(os.getpid(), signal.SIGKILL)

    Pngs.write = writing  # type: ignore[method-assign]
    entry()


if __name__ == "__main__":
    main()
