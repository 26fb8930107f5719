"""Every kind of place that a trained DiT comes from: `SOURCES`, the first row that matches is read.

A new source is one file of this folder, with `read(path, asked) -> Checkpoint`, and one line here. What reads a source
is imported when it is used, so that the table can be listed, and a path be recognised, without PyTorch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.errors import CheckpointError
from .asked import Asked
from .places import diffusers_folder_of, is_diffusers_folder

if TYPE_CHECKING:
    from .checkpoint import Checkpoint


@dataclass(frozen=True)
class Source:
    """what: for people, after "Checkpoint: ". reader: the module of this folder with `read`."""

    what: str
    matches: Callable[[Path, Asked], bool]
    reader: str

    def read(self, path: Path, asked: Asked) -> Checkpoint:
        """Raises CheckpointError that names the file, and the key."""
        module = importlib.import_module(f"{__name__}.{self.reader}")
        found: Checkpoint = module.read(path, asked)
        return found


def _suffix(*suffixes: str) -> Callable[[Path, Asked], bool]:
    return lambda path, asked: path.suffix in suffixes


TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
SOURCES = {
    "custom": Source("with --model any file of tensors", lambda path, asked: asked.model is not None, "custom"),
    "diffusers": Source(
        "a diffusers DiT folder", lambda path, asked: is_diffusers_folder(diffusers_folder_of(path)), "diffusers_folder"
    ),
    "safetensors": Source(".safetensors", _suffix(".safetensors"), "checkpoint"),
    "torch": Source(f"{', '.join(TORCH_SUFFIXES)} (flat, or train.py's)", _suffix(*TORCH_SUFFIXES), "checkpoint"),
}


def is_source(path: Path) -> bool:
    return any(source.matches(path, Asked()) for source in SOURCES.values())


def source_of(path: Path, asked: Asked | None = None) -> Source:
    """The row of `path`. Raises CheckpointError that lists the table."""
    found = next((source for source in SOURCES.values() if source.matches(path, asked or Asked())), None)
    if found is None:
        problem = "is not a checkpoint" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {problem}; what is read: {listed()}")
    return found


def listed() -> str:
    """The table for help and errors, what is usual first."""
    return ", ".join(source.what for source in reversed(SOURCES.values()))
