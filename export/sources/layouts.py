"""The families of networks that a checkpoint file may hold: `FAMILIES`, the first that knows the keys reads.

A new family is one file of this folder, with `read(state, settings, asked) -> Described | None` (None: the keys are
another's), one in ../networks/ with its module, and one line here and in ../networks/registry.py.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .asked import Asked
from .family import Described
from .imeanflow import read as read_imeanflow
from .lightningdit import read as read_lightningdit
from .maskdit import read as read_maskdit
from .mdtv2 import read as read_mdtv2
from .meanflow import read as read_meanflow
from .repa import read as read_repa
from .settings import Settings
from .shapes import config_from_shapes

FAMILIES: tuple[Callable[[dict[str, Tensor], Settings, Asked], Described | None], ...] = (
    read_lightningdit,
    read_mdtv2,
    read_maskdit,
    read_imeanflow,
    read_meanflow,
    read_repa,
)


def described(state: dict[str, Tensor], settings: Settings, asked: Asked) -> Described:
    """What `state` is: of the first family that knows its keys, else facebookresearch/DiT's. Raises CheckpointError."""
    for read in FAMILIES:
        found = read(state, settings, asked)
        if found is not None:
            return found
    config, said = config_from_shapes(state, settings, asked)
    return Described(state, config, said)
