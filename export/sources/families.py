"""The families that take prompts: a diffusers class, and what reads its folders. Each is one file here, and one of
`networks/`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ...runtime.errors import CheckpointError
from .aura_flow_folder import read_aura_flow
from .diffusers_folder import CLASSES
from .flux2_folder import read_flux2
from .flux_folder import read_flux
from .hunyuan_dit_folder import read_hunyuan_dit
from .lumina2_folder import read_lumina2
from .pixart_file import is_pixart_file, read_pixart_file
from .pixart_folder import read_pixart
from .places import class_of_network, diffusers_folder_of, is_lone_file, network_folder
from .prompt_checkpoint import PromptCheckpoint
from .sana_folder import read_sana
from .sd3_folder import read_sd3
from .z_image_folder import read_z_image

FAMILIES: dict[str, Callable[[Path], PromptCheckpoint]] = {
    "PixArtTransformer2DModel": read_pixart,
    "SanaTransformer2DModel": read_sana,
    "SD3Transformer2DModel": read_sd3,
    "FluxTransformer2DModel": read_flux,
    "Flux2Transformer2DModel": read_flux2,
    "HunyuanDiT2DModel": read_hunyuan_dit,
    "AuraFlowTransformer2DModel": read_aura_flow,
    "ZImageTransformer2DModel": read_z_image,
    "Lumina2Transformer2DModel": read_lumina2,
}


def family_of(
    path: Path, heads: int | None = None, image_size: int | None = None
) -> Callable[[Path], PromptCheckpoint] | None:
    """What reads a network that takes prompts, of a diffusers folder or a lone file; None for one of classes, and for
    what is neither. heads, image_size: for a file, which may not say them.

    Raises CheckpointError for a class that nobody reads.
    """
    if is_lone_file(path) and is_pixart_file(path):
        return partial(read_pixart_file, heads=heads, image_size=image_size)
    name = class_of_network(path)
    if name is None or name in CLASSES:
        return None
    if name not in FAMILIES:
        config = network_folder(diffusers_folder_of(path)) / "config.json"
        raise CheckpointError(
            f"{config}: '_class_name' is {name[:60]!r}, not a DiT ({' or '.join(CLASSES)}), nor one of the families "
            f"that take prompts and are read: {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]
