"""Kernels that TensorRT-RTX compiled on this GPU, kept from one start to the next.

They are executable code. So they lie in the user's own cache directory, in a folder that nobody else may touch, and
never in a bundle, which may come from anywhere. The library itself refuses those of another GPU, driver or version.
"""

from __future__ import annotations

import os
import stat
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import RequestError
from ..files import written_atomically
from .library import GpuInfo

MOST_BYTES = 1 << 30  # a larger file is none of ours


def kernel_folder() -> Path | None:
    """Of this user: $XDG_CACHE_HOME or ~/.cache (Windows: %LOCALAPPDATA%); None for a user without a home."""
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA", "")
    else:
        root = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(root):  # the XDG specification: relative paths are to be ignored
        try:
            root = str(Path.home() / ".cache")
        except RuntimeError:
            return None
    return Path(root) / "ditedge" / "kernels"


def kernel_file(plan_sha256: str, gpu: GpuInfo) -> Path | None:
    """Of one plan on one GPU."""
    folder = kernel_folder()
    model = "".join(letter if letter.isalnum() else "-" for letter in gpu.name)[:60]
    return folder / f"{plan_sha256}-{gpu.capability}-{model}" if folder is not None else None


def read_kernels(file: Path | None) -> bytes:
    """What was kept, b"" for nothing. A folder or file that others may write to is not read, and that is said."""
    if file is None or not _private(file.parent):
        return b""
    flags = (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))  # no link; a pipe does not wait
    try:
        descriptor = os.open(file, sum(flags, os.O_RDONLY))
    except OSError:
        return b""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES or not _own(found):
        os.close(descriptor)
        return b""
    with os.fdopen(descriptor, "rb") as opened:
        return opened.read()


def keep_kernels(file: Path | None, kernels: Sequence[int]) -> None:
    """Whole or not at all; where it cannot be written, they are compiled again next time."""
    if file is None:
        return
    with suppress(OSError, RequestError):
        file.parent.parent.mkdir(parents=True, exist_ok=True)
        file.parent.mkdir(mode=0o700, exist_ok=True)
        if _private(file.parent):
            with written_atomically(file, is_result=False) as temporary:
                temporary.write_bytes(bytes(kernels))
                temporary.chmod(0o600)


def _private(folder: Path) -> bool:
    """Whether it is a folder of this user, where nobody else can write."""
    try:
        found = os.lstat(folder)
    except OSError:
        return False  # not there yet
    if stat.S_ISDIR(found.st_mode) and _own(found):
        return True
    text = f"{folder} is not a folder of this user alone: compiled kernels are not kept there"
    warnings.warn(f"{text} (chmod 700, or remove it)", RuntimeWarning, stacklevel=2)
    return False


def _own(found: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or (found.st_uid == os.geteuid() and not found.st_mode & 0o022)
