"""Where a run's pictures and tensors go, by the names that they are given; refused before the work, not after."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..bundle.open import Bundle
from ..bundle.sizes import latent_of
from ..errors import RequestError
from ..files import check_writable
from .images import FORMATS
from .recipe import Recipe

STDOUT = Path("-")
TENSOR_SUFFIXES = ("", ".safetensors", ".npz")
SUFFIX = re.compile(r"\.[a-z][a-z0-9]{1,11}", re.IGNORECASE)  # .gif and .tiff, but not the .5 of a folder "scale-1.5"


@dataclass(frozen=True)
class Output:
    """Pictures go to `path`: a "picture" (several are a grid), a "folder" of PNGs, an "npz", or "stdout" (as PNG)."""

    path: Path
    kind: str


def picture_output(out: Path) -> Output:
    """What `-o OUT` means. Raises RequestError for a suffix of another format, and where nothing can be written."""
    if out == STDOUT:
        return Output(out, "stdout")
    kind = {".npz": "npz", **dict.fromkeys(FORMATS, "picture")}.get(out.suffix.lower(), "folder")
    if _is_folder(out):
        kind = "folder"
    elif kind == "folder" and SUFFIX.fullmatch(out.suffix):
        raise RequestError(
            f"cannot write {out}: give a name that ends in {', '.join(FORMATS)} or .npz, '-', or a folder "
            "(one with such a name: make it first)"
        )
    elif kind == "folder" and out.exists():
        raise RequestError(f"cannot write {out}: give a name that ends in .png, or a folder")
    check_writable(out / "0.png" if kind == "folder" else out)
    return Output(out, kind)


def check_tensor_file(path: Path) -> None:
    """Raises RequestError for latents and trajectories under a name that is not .safetensors or .npz."""
    if path == STDOUT:
        raise RequestError("tensors are not written to the standard output: give a name that ends in .safetensors")
    if path.suffix.lower() not in TENSOR_SUFFIXES and SUFFIX.fullmatch(path.suffix):
        raise RequestError(f"cannot write {path}: tensors are .safetensors or .npz")
    check_writable(path)


def check_memory(bundle: Bundle, recipe: Recipe, copies: int) -> None:
    """Raises RequestError when the results of a run, which are held until its end, exceed this machine's memory.

    copies: of the latents, for a trajectory.
    """
    images, latent = recipe.images, latent_of(bundle, recipe.size)
    each = 4 * math.prod(latent) * copies
    if "decoder" in bundle.manifest.graphs:
        each += 2 * math.prod(bundle.manifest.picture_size("decoder", latent[1:]))
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**63
    if images * each > have:
        raise RequestError(
            f"{images} images take {images * each / 1e9:.1f} GB at once, and this machine has {have / 1e9:.1f} GB: "
            f"give a smaller --count, such as {max(1, have // (2 * each))}, and go on with a later --seed"
        )


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror}") from None
