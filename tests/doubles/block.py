"""A piece of memory of the double of a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Block:
    """One allocation. data: uint8 from its aligned address on; written: which bytes device work has written."""

    address: int
    data: np.ndarray
    written: np.ndarray
    kind: str  # "device" or "pinned"
    live: bool = True
