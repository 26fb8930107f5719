"""Files that appear whole or not at all: written under a temporary name beside their place, then renamed."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .errors import RequestError
from .replacing import file_beside, note_target, scratch_folder


@contextmanager
def written_atomically(path: Path, is_result: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it on success, removes it on any exception.

    Folders on the way to it are made. A link stays one: the file that it names is replaced. What is no file (a device,
    a pipe) is written to instead. is_result: it counts as written when the command is interrupted later; caches do not.
    Raises RequestError when the place cannot be written (no permission, disk full, an unread pipe).
    """
    target = path.resolve() if path.is_symlink() else path
    try:
        if target.exists() and not target.is_file():
            with scratch_folder() as folder:
                yield folder / path.name
                _copy_into(folder / path.name, target)
            return
        with file_beside(target) as temporary:
            yield temporary
            if is_result:
                note_target(temporary, target)
            os.replace(temporary, target)
    except OSError as error:
        raise RequestError(f"cannot write {path}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    return "nobody reads this pipe" if error.errno == errno.ENXIO else error.strerror or str(error)


def _copy_into(source: Path, target: Path) -> None:
    """Into a device or a pipe. Raises OSError (ENXIO: nobody reads the pipe), so that nothing waits for ever."""
    handle = os.open(target, os.O_WRONLY | os.O_NONBLOCK)
    os.set_blocking(handle, True)
    with source.open("rb") as read, os.fdopen(handle, "wb") as written:
        shutil.copyfileobj(read, written)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, atomically."""
    with written_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a .npz, or else a .safetensors file, atomically."""
    from safetensors.numpy import save

    with written_atomically(path) as temporary:
        if path.suffix == ".npz":
            with temporary.open("wb") as file:
                np.savez(file, **tensors)  # type: ignore[arg-type]  # savez's own keywords are no names of ours
        else:
            temporary.write_bytes(save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}))


def check_writable(path: Path) -> None:
    """Raises RequestError now when `path` could not be written later: before minutes of work, not after.

    Folders on the way to it that do not exist yet are no obstacle: they are made when the file is written.
    """
    try:
        if path.is_dir():
            raise RequestError(f"cannot write {path}: it is a folder")
        target = path.resolve() if path.is_symlink() else path
        if target.exists() and not target.is_file():
            os.close(os.open(target, os.O_WRONLY | os.O_NONBLOCK))
            return
        existing = next(folder for folder in target.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise RequestError(f"cannot write {path}: {_reason(error)}") from None


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
