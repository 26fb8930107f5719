"""Where the batches of a set lie: PNGs with a list of them, or parts that end up in one .npz file."""

from __future__ import annotations

import csv
import io
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import DitedgeError, RequestError
from ..files import sha256_of_file, write_tensors, write_text, written_atomically
from ..pictures.images import open_picture
from ..report import Report, silent
from .plan import SetPlan

LIST, ARRAYS, PARTS = "labels.csv", "samples.npz", "parts"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the time of everything in a .npz, so that the same arrays are the same file
BLOCK = 1 << 20
Encode = Callable[[int, np.ndarray], bytes]  # an image's number and pixels -> its PNG


class Place(Protocol):
    """A set's folder, batch by batch."""

    def has(self, batch: int) -> bool:
        """Whether all of it is there and undamaged."""

    def write(self, batch: int, images: np.ndarray, encode: Encode) -> None:
        """images: uint8 [b, h, w, 1 or 3]."""

    def take(self, batch: int, other: Path) -> None:
        """The files of a batch from another folder of the same set, which has it."""

    def finish(self, report: Report = silent) -> Path:
        """Of a set that is complete: writes the file with which it is -> that file."""


def place_of(folder: Path, plan: SetPlan) -> Place:
    return Pngs(folder, plan) if plan.format == "png" else Arrays(folder, plan)


class Pngs:
    """A PNG an image, as `run` writes it, and labels.csv, which has the hash of each."""

    def __init__(self, folder: Path, plan: SetPlan) -> None:
        self.folder, self.plan = folder, plan

    def has(self, batch: int) -> bool:
        return all(_is_whole_png(self.folder / self.plan.file(image)) for image in self.plan.images(batch))

    def write(self, batch: int, images: np.ndarray, encode: Encode) -> None:
        for image, pixels in zip(self.plan.images(batch), images, strict=True):
            with written_atomically(self.folder / self.plan.file(image), is_result=False) as temporary:
                temporary.write_bytes(encode(image, pixels))

    def take(self, batch: int, other: Path) -> None:
        for image in self.plan.images(batch):
            _copy(other / self.plan.file(image), self.folder / self.plan.file(image))

    def finish(self, report: Report = silent) -> Path:
        plan, text = self.plan, io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["image", "file", "label", "class", "seed", "sha256"])
        for image in range(plan.count):
            label, file = plan.label(image), plan.file(image)
            digest = sha256_of_file(self.folder / file)
            rows.writerow([image, file, label, plan.class_name(label), plan.seed + image, digest])
            report("listing", image + 1, plan.count)
        write_text(self.folder / LIST, text.getvalue())
        return self.folder / LIST


def _is_whole_png(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with open_picture(path) as image:
            image.load()
        return True
    except (DitedgeError, OSError):
        return False


class Arrays:
    """samples.npz with arr_0 uint8 [N, h, w, 3] and arr_1 int64 [N]; until all are there, a part for each batch."""

    def __init__(self, folder: Path, plan: SetPlan) -> None:
        self.folder, self.plan = folder, plan

    @property
    def whole(self) -> Path:
        return self.folder / ARRAYS

    def _part(self, batch: int) -> Path:
        return self.folder / PARTS / f"{batch:08d}.npz"

    def has(self, batch: int) -> bool:
        return self._part(batch).is_file() and _images(self._part(batch), len(self.plan.images(batch))) is not None

    def write(self, batch: int, images: np.ndarray, encode: Encode) -> None:
        with_colours = np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
        write_tensors(self._part(batch), {"arr_0": with_colours})

    def take(self, batch: int, other: Path) -> None:
        _copy(other / PARTS / f"{batch:08d}.npz", self._part(batch))

    def complete(self) -> bool:
        """Whether samples.npz is there, undamaged and of this set's length."""
        try:
            with zipfile.ZipFile(self.whole) as archive:
                return archive.testzip() is None and archive.namelist() == ["arr_0.npy", "arr_1.npy"]
        except Exception:  # of a damaged file the library raises whatever it likes: zlib's, NotImplementedError ...
            return False

    def finish(self, report: Report = silent) -> Path:
        """A part at a time: the set may be larger than memory. The parts are removed.

        Two shards that end in the same moment both do it: the same bytes, and one removes what the other still reads.
        """
        try:
            self._join(report)
        except (RequestError, FileNotFoundError):
            if not self.complete():
                raise
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)
        return self.whole

    def _join(self, report: Report) -> None:
        first = self._read(0)
        labels = np.array([self.plan.label(image) for image in range(self.plan.count)], dtype=np.int64)
        with written_atomically(self.whole) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            _add(archive, "arr_0", (self.plan.count, *first.shape[1:]), first.dtype, self._parts(report))
            _add(archive, "arr_1", labels.shape, labels.dtype, iter([labels]))

    def _parts(self, report: Report) -> Iterator[np.ndarray]:
        for batch in range(self.plan.batches):
            yield self._read(batch)
            report("joining", batch + 1, self.plan.batches)

    def _read(self, batch: int) -> np.ndarray:
        images = _images(self._part(batch), len(self.plan.images(batch)))
        if images is None:
            raise RequestError(f"{self._part(batch)} is damaged: run the same command again")
        return images


def _images(path: Path, count: int) -> np.ndarray | None:
    """uint8 [count, h, w, 3] of a part; None where it is damaged (a .npz knows by its checksums)."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images: np.ndarray = arrays["arr_0"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return images if images.dtype == np.uint8 and images.ndim == 4 and len(images) == count else None


def _add(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype, parts: Iterator[np.ndarray]
) -> None:
    """One array of a .npz, as numpy's `savez` writes it, from parts along its first axis."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(zipfile.ZipInfo(f"{name}.npy", EPOCH), "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part).tobytes())


def _copy(source: Path, target: Path) -> None:
    if target.exists() and source.samefile(target):
        return
    with written_atomically(target, is_result=False) as temporary:
        shutil.copyfile(source, temporary)
