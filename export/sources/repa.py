"""REPA's checkpoints: SiT with projectors, whose time and velocity run the other way round (docs/sources.md).

Known by `projectors.` among the keys, or by what its train.py records: path_type 'linear', where SiT's writes 'Linear'.
"""

from __future__ import annotations

import re

from torch import Tensor

from ...runtime.errors import CheckpointError
from .asked import Asked
from .family import Described
from .settings import Settings
from .shapes import config_from_shapes

PROJECTORS, BLOCKS, LATE_BLOCKS = "projectors.", "blocks.", "decoder_blocks."
PATHS = ("linear", "cosine")  # train.py --path-type


def read(state: dict[str, Tensor], settings: Settings, asked: Asked) -> Described | None:
    """Drops what only training uses; None where it is not REPA's. Raises CheckpointError for settings of another
    network than the keys'.
    """
    projectors = [key for key in state if key.startswith(PROJECTORS)]
    path = settings.values.get("path_type")
    if projectors and path not in (None, *PATHS):
        raise CheckpointError(
            f"{settings.said('path_type')} contradicts the key '{projectors[0]}': networks with projectors are REPA's, "
            f"whose train.py writes '{PATHS[0]}'; these settings are of another network: move them away"
        )
    if not projectors and path not in PATHS:
        return None
    tensors = _numbered({key: tensor for key, tensor in state.items() if key not in projectors}, settings)
    _check_encoder_depth(tensors, settings)
    dropped = sum(state[key].numel() for key in projectors)
    notes = [f"alignment: REPA's projectors are left out, {dropped:,} parameters that only training uses"]
    if path is None:
        notes.append("path: linear, time from 1 (noise) to 0 (data) (assumed of REPA: nothing says otherwise)")
    config, said = config_from_shapes(tensors, settings, asked)
    return Described(
        tensors,
        config,
        said,
        prediction="flow" if path is None else None,
        guided_channels=config.in_channels,
        notes=tuple(notes if projectors else notes[1:]),
    )


def _numbered(state: dict[str, Tensor], settings: Settings) -> dict[str, Tensor]:
    """The blocks behind the projectors, `decoder_blocks.N` in early checkpoints (`--legacy`), by DiT's names."""
    if not any(key.startswith(LATE_BLOCKS) for key in state):
        return state
    before = len({key.split(".")[1] for key in state if key.startswith(BLOCKS)})
    said = settings.values.get("encoder_depth", before)
    if said != before:
        raise CheckpointError(
            f"{settings.said('encoder_depth')} contradicts the keys, which have {before} blocks before those of "
            f"'{LATE_BLOCKS}': these settings are of another network, move them away"
        )
    numbered = re.compile(re.escape(LATE_BLOCKS) + r"(\d{1,9})\.(.+)")
    found = {key: numbered.fullmatch(key) for key in state}
    return {
        f"{BLOCKS}{before + int(match[1])}.{match[2]}" if (match := found[key]) else key: tensor
        for key, tensor in state.items()
    }


def _check_encoder_depth(state: dict[str, Tensor], settings: Settings) -> None:
    blocks = len({key.split(".")[1] for key in state if key.startswith(BLOCKS)})
    if not 1 <= settings.values.get("encoder_depth", 1) <= max(blocks, 1):
        raise CheckpointError(
            f"{settings.said('encoder_depth')} contradicts the keys, which have {blocks} blocks: these settings are of "
            "another network, move them away"
        )
