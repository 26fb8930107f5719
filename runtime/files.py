"""Files that appear whole or not at all: written under a temporary name beside their place, then renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .errors import RequestError


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it on success, removes it on any exception.

    Raises RequestError when the place cannot be written (no such folder, no permission, disk full).
    """
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        os.chmod(temporary, 0o666 & ~umask())  # mkstemp's 0600 would stay on the file
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def folder_written_atomically(out: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `out` that takes its place (an older one goes) on success, and vanishes else.

    Raises RequestError when the place cannot be written.
    """
    try:
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise RequestError(f"cannot write {out}: {error.strerror}") from None
    old = folder.with_name(f"{folder.name}.old")
    try:
        yield folder
        folder.chmod(0o777 & ~umask())
        if out.exists():
            os.replace(out, old)
        os.replace(folder, out)
    except OSError as error:
        if old.exists() and not out.exists():
            os.replace(old, out)
        raise RequestError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, atomically."""
    with written_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a .safetensors file, atomically."""
    from safetensors.numpy import save

    with written_atomically(path) as temporary:
        temporary.write_bytes(save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}))


def check_writable(path: Path) -> None:
    """Raises RequestError now when `path` could not be written later: before minutes of work, not after."""
    if path.is_dir():
        raise RequestError(f"cannot write {path}: it is a folder")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror}") from None


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def umask() -> int:
    """The process's file mode mask (reading it means setting it)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
