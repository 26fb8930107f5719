"""MDTv2's checkpoints: the encoder's two halves and the decoder become numbered blocks (docs/sources.md).

Known by `en_inblocks.`. The side-interpolater (`sideblocks.`, `mask_token`) fills masked tokens in training alone.
"""

from __future__ import annotations

import re
from dataclasses import replace

from torch import Tensor

from ...runtime.errors import CheckpointError
from ..networks.mdtv2 import MdtConfig
from .asked import Asked
from .family import Described, check_said, left_out
from .settings import Settings
from .shapes import config_from_shapes

ENCODER, SKIPPED, DECODER, SIDE = "en_inblocks", "en_outblocks", "de_blocks", "sideblocks"
TABLE = "blocks.0.attn.rel_pos_bias.relative_position_bias_table"
MAX_TOKENS = 1 << 12  # their pairs are counted in memory: 1,024 pixels at patch 2
STEPS, GUIDANCE, POWER = 250, 3.8, 4.0  # of its scripts/image_sample.py


def read(state: dict[str, Tensor], settings: Settings, asked: Asked) -> Described | None:
    """None where the keys are another family's. Raises CheckpointError naming the key, or the setting."""
    counts = [_count(state, name) for name in (ENCODER, SKIPPED, DECODER)]
    if not counts[0]:
        if _count(state, SIDE):
            raise CheckpointError(f"key '{SIDE}.0.': MDT before version 2 is not supported")
        return None
    if counts[0] != counts[1]:
        raise CheckpointError(
            f"{counts[0]} blocks of '{ENCODER}.' and {counts[1]} of '{SKIPPED}.': each needs the other"
        )
    check_said(settings, {"decode_layer": counts[2]})
    trained, numbers = left_out(state, f"{SIDE}.", "mask_token")
    tensors = {
        _numbered(key, counts): value for key, value in trained.items() if not key.endswith("relative_position_index")
    }
    if TABLE not in tensors or tensors[TABLE].ndim != 2:
        raise CheckpointError(f"key '{ENCODER}{TABLE.removeprefix('blocks')}' is missing, or no matrix")
    heads = int(tensors[TABLE].shape[1])
    hidden = tensors["pos_embed"].shape[-1] if "pos_embed" in tensors and tensors["pos_embed"].ndim else 0
    if heads < 1 or hidden % heads:
        raise CheckpointError(f"key '{TABLE}' is of {heads} heads, which do not divide the width {hidden}")
    if asked.heads not in (None, heads):
        raise CheckpointError(f"--heads {asked.heads} contradicts key '{TABLE}', which has {heads}")
    config, said = config_from_shapes(tensors, settings, replace(asked, heads=heads))
    if config.tokens > MAX_TOKENS:
        raise CheckpointError(f"key 'pos_embed' has {config.tokens} positions, at most {MAX_TOKENS} have biases")
    return Described(
        tensors,
        MdtConfig(**vars(config), decoder_depth=counts[2]),
        said.replace("(--heads)", "(the bias tables)"),
        sampling={"sampler": "ddpm", "steps": STEPS, "guidance_power": POWER},
        guidance=GUIDANCE,
        notes=(
            f"masking: MDTv2's side-interpolater is left out, {numbers:,} parameters that only training uses",
            f"sampling: DDPM in {STEPS} steps, guidance {GUIDANCE:g} of power-cosine {POWER:g} (its image_sample.py)",
        ),
    )


def _count(state: dict[str, Tensor], name: str) -> int:
    return len({key.split(".")[1] for key in state if key.startswith(f"{name}.")})


def _numbered(key: str, counts: list[int]) -> str:
    """`en_outblocks.1.` -> `blocks.N.`: in the order in which they are run."""
    for name, before in ((ENCODER, 0), (SKIPPED, counts[0]), (DECODER, counts[0] + counts[1])):
        found = re.fullmatch(rf"{name}\.(\d{{1,9}})\.(.+)", key)
        if found:
            return f"blocks.{before + int(found[1])}.{found[2]}"
    return key
