"""Programs put into a bundle that is there. At every moment it is valid: the old one, or the new one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from ...runtime.bundle.manifest import MANIFEST_NAME, FileInfo, Manifest
from ...runtime.bundle.open import Bundle
from ...runtime.bundle.writing import SIGNATURE_NAME
from ...runtime.errors import RequestError
from ...runtime.files import sha256_of_file, write_text
from ...runtime.samplers.program import Program, write_program

PREFIX = "tuned-"  # of names: a later search replaces an earlier one's


def check_can_be_added(bundle: Bundle) -> None:
    """Raises RequestError, before the search, where a new manifest would break something."""
    folder, instead = bundle.folder, "give --no-write, and run the program files of the search's folder"
    if (folder / SIGNATURE_NAME).exists():
        raise RequestError(f"{folder} is signed, and programs would change what was signed: {instead}")
    if any(folder.glob("engines/*/build.json")):
        raise RequestError(f"{folder} has plans, which belong to its manifest as it is: {instead}")
    taken = sorted(one.program for one in bundle.manifest.golden if one.program.startswith(PREFIX))
    if taken:
        raise RequestError(f"{folder}: program '{taken[0]}' is a golden trajectory's: {instead}")


def add_programs(bundle: Bundle, programs: Mapping[str, Program]) -> Manifest:
    """The bundle with these programs, and without those of an earlier search but its default -> its new manifest.

    New files come first, under names that nobody has; then the manifest, at once; then the old ones go.
    Raises RequestError, BundleError.
    """
    check_can_be_added(bundle)
    manifest, folder = bundle.manifest, bundle.folder
    default = manifest.defaults.program
    kept = {name: file for name, file in manifest.programs.items() if not name.startswith(PREFIX) or name == default}
    written = {name: _write(folder, name, program) for name, program in programs.items()}
    gone = set(manifest.programs.values()) - set(kept.values()) - set(written.values())
    files = {name: info for name, info in manifest.files.items() if name not in gone}
    for name in written.values():
        path = folder / name
        files[name] = FileInfo(sha256=sha256_of_file(path), bytes=path.stat().st_size)
    new = manifest.model_copy(update={"programs": kept | written, "files": dict(sorted(files.items()))})
    checked = Manifest.model_validate_json(new.json_text())
    write_text(folder / MANIFEST_NAME, checked.json_text())
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    return checked


def _write(folder: Path, name: str, program: Program) -> str:
    """-> its path in the bundle, of which the hash of its numbers is a part."""
    text = repr((program.made, program.timestep.tolist(), program.mix.tolist(), program.guidance.tolist()))
    file = f"programs/{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
    write_program(program, folder / file)
    return file
