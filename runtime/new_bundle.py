"""May a bundle folder be written here, and what is in it. `files.folder_written_atomically` makes the folder."""

from __future__ import annotations

from pathlib import Path

from .errors import RequestError
from .files import sha256_of_file
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


def hashed_files(folder: Path) -> dict[str, FileInfo]:
    """Every file below `folder` but a manifest, with its size and hash, as the manifest lists them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_NAME)
    return {
        path.relative_to(folder).as_posix(): FileInfo(sha256=sha256_of_file(path), bytes=path.stat().st_size)
        for path in files
    }
