"""Reference pictures for distances: a .npz file or a folder, read in blocks and turned into features."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...runtime.errors import DitedgeError, RequestError, first_line
from ...runtime.pictures.images import open_picture
from ...runtime.report import Report, silent
from ...runtime.sets.finished import finished_set, is_set
from .features import FeatureExtractor

BLOCK = 200  # pictures read at a time
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


def reference_features(
    path: Path,
    extractor: FeatureExtractor,
    shape: tuple[int, int, int],
    report: Report = silent,
) -> np.ndarray:
    """Features [N, F] float32 of the pictures at `path`, each of which must have `shape` [h, w, c].

    path: a .npz with `images` or `arr_0`, or a .npy, uint8 [N, h, w, c] or, in grey, [N, h, w]; or a folder of
    pictures, or of `sample-set`.
    Pictures of another size are refused, not resized: a resampling filter changes the distances.
    Raises RequestError naming the file.
    """
    read = _set if is_set(path) else _folder if path.is_dir() else _npz
    total, blocks = read(path, shape)
    if total < 2:
        raise RequestError(f"{path}: {total} reference picture(s); a distance needs many, hundreds at least")
    parts, done = [], 0
    for block in blocks:
        parts.append(extractor(block)[1])
        done += len(block)
        report("features of the reference", done, total)
    return np.concatenate(parts)


def _npz(path: Path, shape: tuple[int, int, int]) -> tuple[int, Iterator[np.ndarray]]:
    name, images = _loaded(path)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        raise RequestError(
            f"{path}: {name} is {images.dtype} {list(images.shape)}, needs uint8 {['N', *shape]} as the bundles make"
        )
    return len(images), (images[i : i + BLOCK] for i in range(0, len(images), BLOCK))


def _loaded(path: Path) -> tuple[str, np.ndarray]:
    """The array of a .npy, or the one that is meant of a .npz, and what a message calls it. Raises RequestError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that Python 2 wrote
            loaded = np.load(path, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return "the array", loaded
            with loaded as file:
                found = next((name for name in ("images", "arr_0") if name in file.files), None)
                if found is None:
                    raise RequestError(f"{path}: has arrays {', '.join(file.files)}, needs 'images' or 'arr_0'")
                images = file[found]
        if not isinstance(images, np.ndarray):  # a member without an array's header comes as its bytes
            raise ValueError(f"'{found}' is not an array")
        return f"'{found}'", images
    except DitedgeError:
        raise
    except Exception as error:  # a damaged header is Python's syntax to numpy: it raises whatever the parser does
        raise RequestError(
            f"{path}: neither a folder nor a readable .npz or .npy of pictures ({first_line(error)})"
        ) from None


def _set(path: Path, shape: tuple[int, int, int]) -> tuple[int, Iterator[np.ndarray]]:
    found = finished_set(path)
    first = found.read(range(1)).shape[1:]
    if first[:2] != shape[:2] or first[2] < shape[2]:
        raise RequestError(f"{path}: {list(first)} pixels and channels, the bundles make {list(shape)}")
    starts = range(0, found.plan.count, BLOCK)
    blocks = (found.read(range(i, min(i + BLOCK, found.plan.count)))[..., : shape[2]] for i in starts)
    return found.plan.count, blocks


def _folder(path: Path, shape: tuple[int, int, int]) -> tuple[int, Iterator[np.ndarray]]:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    blocks = (files[i : i + BLOCK] for i in range(0, len(files), BLOCK))
    return len(files), (np.stack([_read(file, shape) for file in block]) for block in blocks)


def _read(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    with open_picture(path) as image:
        if (image.height, image.width) != shape[:2]:  # before its pixels are decoded
            raise RequestError(f"{path}: {[image.height, image.width]} pixels, the bundles make {list(shape[:2])}")
        picture = np.asarray(image.convert("L" if shape[2] == 1 else "RGB"))
    return picture.reshape(shape)
