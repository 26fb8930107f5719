"""Replacing what lies at a path, whole or not at all, whatever kills the process in between.

What is being written lies beside its place under a temporary name (`leftovers`). Folders are exchanged by one system
call (renameat2) where the system has it. Elsewhere the older folder steps aside as `.NAME.ditedge-old-XXXXXXXX` for a
moment, and comes back with the next run when the process died in that moment.
"""

from __future__ import annotations

import collections
import ctypes
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import RequestError
from .leftovers import MARK, OLD, SCRATCH, begin_file, begin_folder, end, locked_parent, new_name, sweep

AT_FDCWD, RENAME_NOREPLACE, RENAME_EXCHANGE = -100, 1, 2  # linux/fcntl.h, linux/fs.h

_placed: collections.deque[tuple[Path, object]] = collections.deque(maxlen=100)  # targets, and what was to be there


@contextmanager
def folder_written_atomically(out: Path, may_replace: Callable[[Path], None]) -> Iterator[Path]:
    """Yields a temporary folder beside `out` that takes its place on success, and vanishes otherwise.

    may_replace(out): raises RequestError when what lies at `out` must stay; asked before the work and again before the
    exchange, when something lies there. Raises RequestError also when the place cannot be written, or when another
    process is writing it.
    """
    with _as_request_error(out):
        if os.path.lexists(out):
            may_replace(out)
        folder, lock = _new_folder(out, MARK)
    try:
        yield folder
        folder.chmod(0o777 & ~umask())
        with _as_request_error(out), locked_parent(out):
            note_target(folder, out)
            if os.path.lexists(out):
                may_replace(out)
                _exchange(folder, out)
            else:
                _rename_to_nothing(folder, out)
    except OSError as error:
        raise RequestError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        end(folder, lock)  # what was there before, or what was not finished


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """Yields an empty folder on the disk of `out`, removed afterwards; after a crash by the next writer of `out`."""
    with _as_request_error(out):
        folder, lock = _new_folder(out, SCRATCH)
    try:
        yield folder
    finally:
        end(folder, lock)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yields an empty folder in TMPDIR, removed afterwards; after a crash by the next command that needs one."""
    with scratch_beside(Path(tempfile.gettempdir()) / "ditedge") as folder:
        yield folder


@contextmanager
def file_beside(path: Path) -> Iterator[Path]:
    """Yields an empty, locked file beside `path`, removed afterwards unless it was renamed. Raises OSError."""
    with locked_parent(path):
        sweep(path)
        temporary, lock = begin_file(path)
    try:
        yield temporary
    finally:
        end(temporary, lock)


def note_target(temporary: Path, target: Path) -> None:
    """To be called before `temporary` is renamed to `target`: for `placed`."""
    _placed.append((target, _identity(temporary)))


def placed() -> list[Path]:
    """What this process has put in its place, and still lies there, in order: for who says how a command ended.

    Looked up on the disk, since an interrupt may come between any two lines. What was written into a temporary folder
    is not among them: this one has taken its place, or is gone.
    """
    return [target for target, identity in _placed if identity is not None and _identity(target) == identity]


def umask() -> int:
    """The process's file mode mask (reading it means setting it)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _new_folder(out: Path, mark: str) -> tuple[Path, int]:
    """(a new folder beside `out`, the descriptor that keeps it locked). Refuses where another process writes `out`."""
    with locked_parent(out):
        writers = sweep(out)
        if writers and mark == MARK:
            raise RequestError(f"{out} is being written by another process ({writers[0].name}): wait for it to end")
        return begin_folder(out, mark)


def _exchange(folder: Path, out: Path) -> None:
    """Swaps the two; afterwards `folder` is the older one."""
    if _renameat2(folder, out, RENAME_EXCHANGE):
        return
    old = new_name(out, OLD)
    try:
        os.replace(out, old)
        os.replace(folder, out)
    finally:  # also after Ctrl-C: between the two lines nothing is at `out`
        if os.path.lexists(old):
            os.replace(old, folder if os.path.lexists(out) else out)


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


def _identity(path: Path) -> object:
    """What stays the same when the file or folder is renamed; None where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def _as_request_error(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RequestError(f"cannot write {out}: {error.strerror or error}") from error
