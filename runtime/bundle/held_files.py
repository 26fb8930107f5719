"""Files that are used as they were hashed: opened by name once, and read through that descriptor ever after.

What becomes of the name (moved, deleted, replaced) changes nothing. A change of the bytes is noticed by the times that
the file system keeps of it, and refused unless the bytes are the same. The C++ runtime has the same rules (files.cpp).
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from ..errors import BundleError
from ..processors import usable_processors
from .manifest import FileInfo

BLOCK_BYTES = 1 << 20
YOUNG_NS = 2_000_000_000  # a file that changed so recently may change again within its file system's clock tick
THREAD_BYTES = 8 << 20  # a further thread hashes where there are so many bytes more
MAX_THREADS = 16
_SEEK = threading.Lock()
DAMAGED = "does not match its hash in the manifest: damaged or tampered with"


class HeldFile:
    """One file held open. `complaint` is the end of the sentence when its bytes are not those of `info`."""

    def __init__(self, path: Path, info: FileInfo, complaint: str = DAMAGED, check_hash: bool = True) -> None:
        """Opens, reads nothing. check_hash: False trusts the bytes, not the size. Raises BundleError."""
        self.path, self.bytes, self.sha256 = path, info.bytes, info.sha256
        self._sha256 = info.sha256 if check_hash else None
        self._complaint = complaint
        self._checked: tuple[int, ...] | None = None  # the stamp of the bytes that were hashed
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
        try:
            self._descriptor = os.open(path, flags)
        except OSError as error:
            raise BundleError(f"cannot read {path}: {error.strerror}") from None
        weakref.finalize(self, os.close, self._descriptor)
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise BundleError(f"{path}: not a file")

    def check(self) -> None:
        """Hashes the file, the first time and when it may have changed since. Raises BundleError."""
        stamp = self._stamp()
        if stamp[0] != self.bytes:
            self._refuse()
        if self._sha256 is None or stamp == self._checked:
            return
        if self._hash() != self._sha256:
            self._refuse()
        self._checked = stamp if max(stamp[1:3]) + YOUNG_NS < time.time_ns() else None

    def read(self) -> bytes:
        """The contents, hashed as they are in memory: for what is small. Raises BundleError."""
        if self._stamp()[0] != self.bytes:
            self._refuse()
        raw = b"".join(self._blocks())
        if len(raw) != self.bytes or self._sha256 not in (None, hashlib.sha256(raw).hexdigest()):
            self._refuse()
        return raw

    def map(self) -> mmap.mmap:
        """The contents as memory that the system can take back. `check` before and after they were used."""
        try:
            return mmap.mmap(self._descriptor, self.bytes, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise BundleError(f"cannot read {self.path}: {error}") from None

    def check_path(self) -> Path:
        """The path for one who reads by name: still this file, with these bytes. Raises BundleError."""
        self.check()
        try:
            named, held = os.stat(self.path), os.fstat(self._descriptor)
        except OSError as error:
            raise BundleError(f"{self.path} is gone since the bundle was opened: {error.strerror}") from None
        if not os.path.samestat(named, held):
            raise BundleError(f"{self.path} was replaced since the bundle was opened: open it again")
        return self.path

    def alias(self) -> str | None:
        """Another path of the open file, whatever became of its name; None where the system has none."""
        path = f"/proc/self/fd/{self._descriptor}"
        return path if os.access(path, os.R_OK) else None

    def _stamp(self) -> tuple[int, ...]:
        found = os.fstat(self._descriptor)
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def _hash(self) -> str:
        digest = hashlib.sha256()
        for block in self._blocks():
            digest.update(block)  # releases the GIL
        return digest.hexdigest()

    def _blocks(self) -> Iterator[bytes]:
        """By reading, not by mapping: a truncated file ends, where a map of it would kill the process."""
        offset = 0
        try:
            while block := _read_at(self._descriptor, offset):
                yield block
                offset += len(block)
        except OSError as error:
            raise BundleError(f"cannot read {self.path}: {error.strerror}") from None

    def _refuse(self) -> NoReturn:
        raise BundleError(f"{self.path}: {self._complaint}")


@dataclass(frozen=True)
class HeldGraph:
    """An ONNX graph and the files that its weights are in, by location as the graph names it."""

    file: HeldFile
    external: Mapping[str, HeldFile] = field(default_factory=dict)

    def check(self) -> None:
        """Raises BundleError when one of them is not what was hashed any more."""
        for file in (self.file, *self.external.values()):
            file.check()


def check_all(files: Sequence[HeldFile]) -> None:
    """`check` of every file, the largest first, on as many threads as are worth it. Raises the first BundleError."""
    workers = min(usable_processors(), MAX_THREADS, 1 + sum(file.bytes for file in files) // THREAD_BYTES)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        checks = [pool.submit(file.check) for file in sorted(files, key=lambda file: -file.bytes)]
        try:
            for check in checks:
                check.result()
        except BaseException:  # Ctrl-C, or a file that is refused: the rest is not read
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _read_at(descriptor: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, BLOCK_BYTES, offset)
    with _SEEK:  # Windows
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, BLOCK_BYTES)
