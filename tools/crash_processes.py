"""How `crash.py` starts a command in a folder of its own, traces its system calls, strikes it and waits for its end."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.crash_commands import Command

ROOT = Path(__file__).resolve().parents[1]
CLI = (sys.executable, str(ROOT / "cli.py"))
CALLS = (
    "write,pwrite64,sendfile,copy_file_range,ftruncate,fsync,fdatasync,openat,rename,renameat,renameat2,link,symlink,"
    "mkdir,mkdirat,unlink,unlinkat,rmdir,chmod,fchmod"
)
# What ONNX Runtime keeps in the cache and in TMPDIR, and the file by which Python tries whether TMPDIR can be written.
NOT_OURS = re.compile(r"/cache/Microsoft\b|/tmp/\.ses|/tmp/[a-z0-9_]{8}[\">/]")
STRACE = ("strace", "-f", "-y")  # --seccomp-bpf is quicker, and loses injected signals
PATIENCE = 120.0  # seconds that a signalled command may take to end, on a loaded machine


@dataclass(frozen=True)
class Prepared:
    """A command with what its trials start from and are compared with."""

    command: Command
    start: dict[str, Path]  # "absent" and "old": the folder that holds the target's place
    known: dict[object, str]  # what `identify` says of the old and the new result -> "old", "new"
    names: frozenset[str]  # every path below a trial's folder after runs that nobody killed
    seconds: float
    calls: dict[str, list[int]]  # system call -> the numbers of those that change something below the trial's folder


def launch(
    command: Command, options: str, folder: Path, log: str = "err", strace: tuple[str, ...] = ()
) -> subprocess.Popen[bytes]:
    """Starts the command in `folder` (place, tmp, cache); its messages go to the file beside it that ends in `log`."""
    words = shlex.split(f"{command.arguments} {options}".format(place=folder / "place"))
    with folder.with_suffix(f".{log}").open("wb") as errors:
        return subprocess.Popen(
            [*strace, *CLI, *words],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=os.environ | {"TMPDIR": f"{folder / 'tmp'}", "XDG_CACHE_HOME": f"{folder / 'cache'}"},
            cwd=folder,
            start_new_session=True,
        )


def messages(folder: Path, log: str = "err") -> str:
    return folder.with_suffix(f".{log}").read_text(errors="replace").strip()


def names_below(folder: Path) -> frozenset[str]:
    """All but what is not ours."""
    paths = frozenset(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return frozenset(path for path in paths if not NOT_OURS.search(f"/{path}/"))


@contextmanager
def trial_folder(place: Path | None, parent: Path, name: str) -> Iterator[Path]:
    """A folder with a copy of `place`, an empty TMPDIR and an empty cache."""
    folder = parent / name
    (folder / "tmp").mkdir(parents=True)
    (folder / "cache").mkdir()
    shutil.copytree(place, folder / "place", symlinks=True) if place else (folder / "place").mkdir()
    try:
        yield folder
    finally:
        for path in parent.glob(f"{name}*"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def run_undisturbed(command: Command, options: str, folder: Path, strace: tuple[str, ...] = ()) -> float:
    """-> seconds. Exits when the command fails by itself."""
    start = time.monotonic()
    if launch(command, options, folder, "err", strace).wait() != 0:
        raise SystemExit(f"{command.name} fails by itself: {messages(folder)[-300:]}")
    return time.monotonic() - start


def prepare(command: Command, parent: Path) -> Prepared:
    """Runs it for an older result, and again, traced, for a newer one."""
    with trial_folder(command.place, parent, f"{command.name}-dry") as folder:
        seconds = run_undisturbed(command, command.older, folder)
        start = {"absent": parent / f"{command.name}.absent", "old": parent / f"{command.name}.old"}
        shutil.copytree(command.place, start["absent"]) if command.place else start["absent"].mkdir()
        shutil.copytree(folder / "place", start["old"], symlinks=True)
        known: dict[object, str] = {command.identify(folder / "place" / command.target): "old"}
        names = names_below(folder)
        trace = folder.with_suffix(".trace")
        traced = shutil.which("strace") is not None
        run_undisturbed(
            command, command.newer, folder, (*STRACE, "-o", str(trace), "-e", f"trace={CALLS}") if traced else ()
        )
        known[command.identify(folder / "place" / command.target)] = "new"
        if len(known) != 2:
            raise SystemExit(f"{command.name}: the old and the new result look alike")
        calls = changing_calls(trace.read_text(errors="replace"), folder) if traced else {}
        return Prepared(command, start, known, names | names_below(folder), seconds, calls)


def changing_calls(trace: str, folder: Path) -> dict[str, list[int]]:
    """Of the main thread, per system call: the numbers (from 1) of those that change something below `folder`."""
    found: dict[str, list[int]] = {}
    counts: Counter[str] = Counter()
    main = trace.split(" ", 1)[0]
    for thread, name, rest in re.findall(r"^(\d+) +(\w+)\((.*)$", trace, re.MULTILINE):
        if thread == main:
            counts[name] += 1
            ours = f"{folder}/" in rest and not NOT_OURS.search(rest.replace(str(folder), ""))
            if ours and (name != "openat" or "O_RDONLY" not in rest):
                found.setdefault(name, []).append(counts[name])
    return found


def strike(process: subprocess.Popen[bytes], number: signal.Signals, pause: float, group: bool) -> None:
    """After `pause` seconds, unless it ended. group: also its children, as a terminal's Ctrl-C does."""
    try:
        process.wait(pause)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, number) if group else process.send_signal(number)


def wait(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """-> the exit code, and what speaks against its end: it, or a child of it, lives on ("" if nothing does)."""
    fault = ""
    try:
        code = process.wait(PATIENCE)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            os.killpg(process.pid, 0)
            time.sleep(0.1)
        fault = "its children live on"
    except ProcessLookupError:
        return code, fault
    except subprocess.TimeoutExpired:
        code, fault = -signal.SIGKILL, f"did not end within {PATIENCE:g} s"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return code, fault
