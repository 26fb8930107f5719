"""Writing a bundle's folder: what may be replaced by it, and what is in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..errors import BundleError, RequestError
from ..files import check_writable, sha256_of_file
from ..json_files import read_json
from ..replacing import folder_written_atomically
from .manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, FileInfo
from .open import Bundle
from .signatures import SUFFIX

BUNDLE_FORMAT = "ditedge-bundle"
SIGNATURE_NAME = MANIFEST_NAME + SUFFIX


@contextmanager
def new_bundle(out: Path, force: bool, inputs: Iterable[Path]) -> Iterator[Path]:
    """Yields a temporary folder that becomes the bundle `out` on success, and vanishes otherwise.

    force: replace a bundle that lies there, if it is nothing but a bundle. inputs: what the new one is made from, which
    is never replaced, nor a folder around it. Raises RequestError, before the work and again after it.
    """
    inputs = list(inputs)
    check_target(out, force, inputs)
    with folder_written_atomically(out, lambda path: check_target(path, force, inputs)) as folder:
        yield folder


def check_target(out: Path, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Raises RequestError when a bundle cannot, or (without `force`) should not, be written to `out`."""
    if not out.name:
        raise RequestError(f"cannot write {out}: give a folder with a name, such as --out {Path('fashion-int8')}")
    if not (out.exists() or out.is_symlink()):
        check_writable(out)
        return
    if out.is_symlink() or not out.is_dir():
        raise RequestError(f"{out} exists and is not a bundle: give another --out")
    for source in inputs:
        if source.resolve().is_relative_to(out.resolve()):
            raise RequestError(f"{out} is, or contains, {source}, which is read: give another --out")
    if not any(out.iterdir()):
        return
    foreign = _foreign_file(out)
    if foreign is not None:
        raise RequestError(f"{out} exists and is not a bundle: {foreign}; give another --out")
    if not force:
        raise RequestError(f"{out} already exists, use --force to replace it")


def _foreign_file(folder: Path) -> str | None:
    """What shows that `folder` is not one of our bundles, or that somebody keeps more in it; None when it is one."""
    manifest = folder / MANIFEST_NAME
    if not manifest.is_file():
        return f"it has no {MANIFEST_NAME}"
    try:
        content = read_json(manifest, MAX_MANIFEST_BYTES, BundleError)
    except BundleError:
        content = None
    if not isinstance(content, dict) or content.get("format") != BUNDLE_FORMAT:
        return f"its {MANIFEST_NAME} is not a bundle's"
    listed = content.get("files")
    known = {MANIFEST_NAME, SIGNATURE_NAME, *(listed if isinstance(listed, dict) else ())}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        ours = name in known or name.startswith("engines/") or (path.is_dir() and not path.is_symlink())
        if not ours:
            return f"{name} does not belong to one"
    return None


def copy_files(source: Bundle, folder: Path, but: Iterable[str]) -> None:
    """Copies the bundle's files to `folder`. but: names of graphs to leave out, with their weights.

    A signature, which is the old bundle's, stays behind even where the manifest lists it. Raises BundleError for a file
    that is another one by now, and for those of golden/ and quality/ that are not there.
    """
    left_out = {SIGNATURE_NAME, *(name for graph in but for name in source.manifest.graph_files(graph))}
    for name in source.manifest.files:
        if name not in left_out:
            _copy(source, name, folder)


def copy_graph(source: Bundle, graph: str, folder: Path) -> None:
    """Copies a graph with its weights to `folder`, as `copy_files` does."""
    for name in source.manifest.graph_files(graph):
        _copy(source, name, folder)


def _copy(source: Bundle, name: str, folder: Path) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source.file(name), folder / name)


def hashed_files(folder: Path, known: Mapping[str, FileInfo] | None = None) -> dict[str, FileInfo]:
    """Every file below `folder` but a manifest, with its size and hash, as the manifest lists them.

    known: files that were hashed a moment ago, and are not read again.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_NAME)
    found = {path.relative_to(folder).as_posix(): path for path in files}
    return {
        name: (known or {}).get(name) or FileInfo(sha256=sha256_of_file(path), bytes=path.stat().st_size)
        for name, path in found.items()
    }
