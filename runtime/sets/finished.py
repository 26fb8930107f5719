"""A set that is whole, read: by whoever measures its pictures."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..bundle.open import Bundle
from ..errors import RequestError, first_line
from ..pictures.images import open_picture
from .places import ARRAYS, LIST, Arrays
from .plan import NAME, SetPlan, check_same, plan_of, read_plan
from .request import SampleSetRequest


@dataclass(frozen=True)
class FinishedSet:
    """A folder of `sample-set` in which nothing is missing."""

    folder: Path
    plan: SetPlan

    def read(self, images: range) -> np.ndarray:
        """uint8 [n, h, w, 1 or 3] of these images; arrays have three channels always. Raises RequestError."""
        if self.plan.format == "npz":
            return np.array(_mapped(self.folder / ARRAYS, self.plan.count)[images.start : images.stop])
        return np.stack([_pixels(self.folder / self.plan.file(image)) for image in images])

    def check_was_made_with(self, request: SampleSetRequest, bundle: Bundle, remedy: str) -> None:
        """Raises RequestError with the first thing in which it is not what the request would make, and the remedy."""
        check_same(self.folder, self.plan, plan_of(request, bundle), remedy)


def is_set(path: Path) -> bool:
    return (path / NAME).is_file()


def finished_set(folder: Path) -> FinishedSet:
    """Raises RequestError for what is no set, or not whole."""
    plan = read_plan(folder)
    whole = Arrays(folder, plan).complete() if plan.format == "npz" else (folder / LIST).is_file()
    if not whole:
        raise RequestError(f"{folder} is not whole: run its `ditedge sample-set`, or `ditedge merge`, to the end")
    return FinishedSet(folder, plan)


def _mapped(path: Path, count: int) -> np.ndarray:
    """uint8 [count, h, w, 3] of a set's samples.npz, mapped and not read. Raises RequestError."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            info = archive.getinfo("arr_0.npy")
            file.seek(info.header_offset + 26)  # of the local header: the lengths of what follows it
            file.seek(sum(np.frombuffer(file.read(4), "<u2").tolist()), 1)
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if info.compress_type != zipfile.ZIP_STORED or dtype != np.uint8 or len(shape) != 4 or shape[0] != count:
                raise ValueError(f"{dtype} {list(shape)}, needs uint8 {[count, 'h', 'w', 3]}, not compressed")
            return np.memmap(path, dtype, "r", file.tell(), shape)
    except Exception as error:  # a damaged header is Python's syntax to numpy: it raises whatever the parser does
        raise RequestError(f"{path}: not the arrays of this set ({first_line(error)})") from None


def _pixels(path: Path) -> np.ndarray:
    with open_picture(path) as image:
        pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels
