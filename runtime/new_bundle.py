"""A bundle folder in the making: written beside its place, renamed at the end, so that a failed one never appears."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import RequestError
from .files import sha256_of_file, umask
from .manifest import MANIFEST_NAME, FileInfo


def check_target(out: Path, force: bool) -> None:
    """Raises RequestError when a bundle cannot, or (without `force`) should not, be written to `out`."""
    if not out.parent.is_dir():
        raise RequestError(f"cannot write {out}: the folder {out.parent} does not exist")
    if not (out.exists() or out.is_symlink()):
        return
    if out.is_symlink() or not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST_NAME).is_file()):
        raise RequestError(f"{out} exists and is not a bundle: give another --out")
    if not force and any(out.iterdir()):
        raise RequestError(f"{out} already exists, use --force to replace it")


@contextmanager
def new_folder(out: Path, force: bool) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block succeeds, and vanishes when it does not."""
    try:
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise RequestError(f"cannot write {out}: {error.strerror}") from None
    try:
        yield folder
        folder.chmod(0o777 & ~umask())
        if out.exists():
            old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.old."))
            os.replace(out, old / out.name)
            os.replace(folder, out)
            shutil.rmtree(old)
        else:
            os.replace(folder, out)
    except OSError as error:
        raise RequestError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def hashed_files(folder: Path) -> dict[str, FileInfo]:
    """Every file below `folder` but a manifest, with its size and hash, as the manifest lists them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_NAME)
    return {
        path.relative_to(folder).as_posix(): FileInfo(sha256=sha256_of_file(path), bytes=path.stat().st_size)
        for path in files
    }
