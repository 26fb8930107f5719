"""Replacing what lies at a path, whole or not at all, whatever kills the process in between.

What is being written lies beside its place as `.NAME.ditedge-XXXXXXXX`, locked (flock) by the process that writes it: a
lock ends with its process, so the next writer of the same place tells what a dead one left behind and removes it.
Folders are exchanged by one system call (renameat2) where the system has it. Elsewhere the older folder steps aside as
`.NAME.ditedge-old-XXXXXXXX` for a moment, and comes back with the next run when the process died in that moment.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import RequestError

MARK, SCRATCH, OLD = ".ditedge-", ".ditedge-work-", ".ditedge-old-"
NAME_BYTES = 100  # of the target's name in a temporary one: names end at 255 bytes
LOCK_SECONDS = 5.0  # longest wait for another process that looks for leftovers or exchanges: both take milliseconds
AT_FDCWD, RENAME_NOREPLACE, RENAME_EXCHANGE = -100, 1, 2  # linux/fcntl.h, linux/fs.h

_locked: set[Path] = set()  # temporary folders of this process: nobody else writes in them


@contextmanager
def folder_written_atomically(out: Path, may_replace: Callable[[Path], None]) -> Iterator[Path]:
    """Yields a temporary folder beside `out` that takes its place on success, and vanishes otherwise.

    may_replace(out): raises RequestError when what lies at `out` must stay; asked before the work and again before the
    exchange, when something lies there. Raises RequestError also when the place cannot be written, or when another
    process is writing it.
    """
    with _as_request_error(out):
        if _exists(out):
            may_replace(out)
        folder, lock = _new_folder(out, MARK)
    try:
        yield folder
        folder.chmod(0o777 & ~umask())
        with _as_request_error(out), _locked_parent(out):
            if _exists(out):
                may_replace(out)
                _exchange(folder, out)
            else:
                _rename_to_nothing(folder, out)
    except OSError as error:
        raise RequestError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        _let_go(folder, lock)  # what was there before, or what was not finished


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """Yields an empty folder on the disk of `out`, removed afterwards; after a crash by the next writer of `out`."""
    with _as_request_error(out):
        folder, lock = _new_folder(out, SCRATCH)
    try:
        yield folder
    finally:
        _let_go(folder, lock)


@contextmanager
def file_beside(path: Path) -> Iterator[Path]:
    """Yields an empty, locked file beside `path`, removed afterwards unless it was renamed. Raises OSError."""
    with _locked_parent(path):
        if path.parent.resolve() not in _locked:
            _sweep(path)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path, MARK), suffix=path.suffix)
        _try_lock(handle)
    temporary = Path(name)
    try:
        os.chmod(temporary, 0o666 & ~umask())  # mkstemp's 0600 would stay on the file
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def umask() -> int:
    """The process's file mode mask (reading it means setting it)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _new_folder(out: Path, mark: str) -> tuple[Path, int]:
    """(a new folder beside `out`, the descriptor that keeps it locked). Refuses where another process writes `out`."""
    with _locked_parent(out):
        writers = _sweep(out)
        if writers and mark == MARK:
            raise RequestError(f"{out} is being written by another process ({writers[0].name}): wait for it to end")
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=_prefix(out, mark)))
        lock = os.open(folder, os.O_RDONLY)
        _try_lock(lock)
        _locked.add(folder.resolve())
    return folder, lock


def _let_go(folder: Path, lock: int) -> None:
    _locked.discard(folder.resolve())
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _sweep(target: Path) -> list[Path]:
    """Removes what dead processes left of writing `target` -> the folders that living ones are filling."""
    living = []
    for name in os.listdir(target.parent):
        path = target.parent / name
        if name.startswith(_prefix(target, OLD)):
            _remove(path) if _exists(target) else os.rename(path, target)
        elif name.startswith(_prefix(target, MARK)) and not path.is_symlink():
            if _is_dead(path):
                _remove(path)
            elif path.is_dir() and not name.startswith(_prefix(target, SCRATCH)):
                living.append(path)
    return living


def _is_dead(path: Path) -> bool:
    """Whether no process holds the lock of `path`, which is then ours to remove. False where that cannot be told."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        return _try_lock(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _prefix(target: Path, mark: str) -> str:
    name = target.name
    if len(name.encode()) > NAME_BYTES:
        name = f"{name[: NAME_BYTES // 4]}~{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return f".{name}{mark}"


def _try_lock(handle: int) -> bool:
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
def _locked_parent(target: Path) -> Iterator[None]:
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
        while not _try_lock(handle) and time.monotonic() < until:
            time.sleep(0.01)
        yield
    finally:
        os.close(handle)


def _exchange(folder: Path, out: Path) -> None:
    """Swaps the two; afterwards `folder` is the older one."""
    if _renameat2(folder, out, RENAME_EXCHANGE):
        return
    old = Path(tempfile.mkdtemp(dir=out.parent, prefix=_prefix(out, OLD)))
    try:
        os.replace(out, old)  # onto an empty folder
        os.replace(folder, out)
    except BaseException:  # also Ctrl-C: between the two lines nothing is at `out`
        if not _exists(out) and _exists(old):
            os.replace(old, out)
        raise
    os.replace(old, folder)


def _rename_to_nothing(folder: Path, out: Path) -> None:
    """Renames, where nothing lies at `out`; raises OSError when something appeared there."""
    if not _renameat2(folder, out, RENAME_NOREPLACE):
        os.rename(folder, out)  # fails on everything but an empty folder


def _renameat2(a: Path, b: Path, flags: int) -> bool:
    """Linux's renameat2(2) -> whether this system and file system have it. Raises OSError when it refuses."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if call is None:
        return False
    if call(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), ctypes.c_uint(flags)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(number, os.strerror(number), str(b))


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


@contextmanager
def _as_request_error(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RequestError(f"cannot write {out}: {error.strerror or error}") from error
