"""Temporary names beside a target: who made them, whether he still lives, and their removal.

What is being written lies beside its place as `.NAME.ditedge-XXXXXXXX`, locked (flock) by the process that writes it: a
lock ends with its process, so the next writer of the same place tells what a dead one left behind and removes it. A
process that ends by itself (a signal raises an exception, which may come between any two lines) removes its own.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK, SCRATCH, OLD = ".ditedge-", ".ditedge-work-", ".ditedge-old-"
NAME_BYTES = 100  # of the target's name in a temporary one: names end at 255 bytes
LOCK_SECONDS = 5.0  # longest wait for another process that looks for leftovers or exchanges: both take milliseconds

_locked: set[Path] = set()  # temporary folders of this process: nobody else writes in them
_begun: dict[Path, tuple[Path, int]] = {}  # temporary names in use -> their target, the process that writes it


def begin_file(target: Path) -> tuple[Path, int]:
    """-> (a new empty file beside `target`, the descriptor that keeps it locked). Inside `locked_parent`."""
    path = new_name(target, MARK, target.suffix)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try_lock(handle)
    return path, handle


def begin_folder(target: Path, mark: str) -> tuple[Path, int]:
    """-> (a new folder beside `target`, the descriptor that keeps it locked). Inside `locked_parent`."""
    path = new_name(target, mark)
    path.mkdir(0o700)
    handle = os.open(path, os.O_RDONLY)
    try_lock(handle)
    _locked.add(path.resolve())
    return path, handle


def end(path: Path, handle: int) -> None:
    """Removes what is at the temporary name, if anything is, and lets go of its lock."""
    try:
        _locked.discard(path.resolve())
        remove(path)
        if not os.path.lexists(path):  # otherwise once more when the process ends
            _begun.pop(path.absolute(), None)
    finally:
        os.close(handle)


@atexit.register
def _end_all() -> None:
    """What an interrupt between two lines left; not what belongs to the process that this one was forked from."""
    left = {path: out for path, (out, process) in _begun.items() if process == os.getpid() and os.path.lexists(path)}
    if left and threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)  # the process is ending as it is
    for path, target in left.items():
        _settle(path, target)


def new_name(target: Path, mark: str, suffix: str = "") -> Path:
    """A temporary name, noted before anything is made there."""
    path = target.parent / f"{prefix(target, mark)}{os.urandom(4).hex()}{suffix}"
    _begun[path.absolute()] = target.absolute(), os.getpid()
    return path


def sweep(target: Path) -> list[Path]:
    """Removes what dead processes left of writing `target` -> the folders that living ones are filling."""
    living: list[Path] = []
    if target.parent.resolve() in _locked:
        return living
    for name in os.listdir(target.parent):
        path = target.parent / name
        if name.startswith(prefix(target, OLD)):
            _settle(path, target)
        elif name.startswith(prefix(target, MARK)) and not path.is_symlink():
            if _is_dead(path):
                remove(path)
            elif path.is_dir() and not name.startswith(prefix(target, SCRATCH)):
                living.append(path)
    return living


def _settle(path: Path, target: Path) -> None:
    """Removes a leftover; what stepped aside for a target that never came goes back."""
    if path.name.startswith(prefix(target, OLD)) and not os.path.lexists(target):
        os.rename(path, target)
    else:
        remove(path)


def _is_dead(path: Path) -> bool:
    """Whether no process holds the lock of `path`, which is then ours to remove. False where that cannot be told."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        return try_lock(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """A file or a folder; what cannot be removed stays, for the next run."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def prefix(target: Path, mark: str) -> str:
    """What the temporary names of `target` begin with."""
    name = target.name
    if len(name.encode()) > NAME_BYTES:
        name = f"{name[: NAME_BYTES // 4]}~{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return f".{name}{mark}"


def try_lock(handle: int) -> bool:
    """Whether the lock was to be had. Without flock (Windows) nothing is ever known to be dead."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def locked_parent(target: Path) -> Iterator[None]:
    """Looking for leftovers, and the exchange, are one process's at a time; the long work between them is not.

    Folders on the way to the target are made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.name != "posix" or target.parent.resolve() in _locked:
        yield
        return
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        until = time.monotonic() + LOCK_SECONDS
        while not try_lock(handle) and time.monotonic() < until:
            time.sleep(0.01)
        yield
    finally:
        os.close(handle)
