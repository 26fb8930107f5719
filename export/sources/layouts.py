"""The families of networks that a checkpoint file may hold: `FAMILIES`, the first that knows the keys reads.

A new family is one file of this folder, with `read(state, settings, asked) -> Described | None` (None: the keys are
another's), one in ../networks/ with its module, and one line here and in ../networks/registry.py.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from . import lightningdit, maskdit, mdtv2, repa
from .asked import Asked
from .family import Described
from .settings import Settings
from .shapes import config_from_shapes

FAMILIES: tuple[Callable[[dict[str, Tensor], Settings, Asked], Described | None], ...] = (
    lightningdit.read,
    mdtv2.read,
    maskdit.read,
    repa.read,
)


def described(state: dict[str, Tensor], settings: Settings, asked: Asked) -> Described:
    """What `state` is: of the first family that knows its keys, else facebookresearch/DiT's. Raises CheckpointError."""
    for read in FAMILIES:
        found = read(state, settings, asked)
        if found is not None:
            return found
    config, said = config_from_shapes(state, settings, asked)
    return Described(state, config, said)
