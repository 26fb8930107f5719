"""Checkpoint -> bundle: `bundle_from_checkpoint`. Needs torch, onnx, onnxscript and onnxruntime."""

from typing import TYPE_CHECKING

from ..runtime.lazy import lazily

if TYPE_CHECKING:
    from .exporter import ExportOptions as ExportOptions
    from .exporter import bundle_from_checkpoint as bundle_from_checkpoint
    from .exporter import bundle_in_precision as bundle_in_precision
    from .networks.dit import DiT as DiT
    from .networks.dit import DiTConfig as DiTConfig
    from .sources import bundle_name as bundle_name
    from .sources import read_source as read_source
    from .sources.checkpoint import Checkpoint as Checkpoint
    from .sources.checkpoint import read_checkpoint as read_checkpoint
    from .sources.diffusers_folder import diffusers_folder_of as diffusers_folder_of
    from .sources.diffusers_folder import read_diffusers_folder as read_diffusers_folder
    from .sources.diffusers_folder import vae_folder as vae_folder
    from .with_decoder import add_decoder as add_decoder

HOMES = {
    "Checkpoint": "sources.checkpoint",
    "DiT": "networks.dit",
    "DiTConfig": "networks.dit",
    "ExportOptions": "exporter",
    "add_decoder": "with_decoder",
    "bundle_from_checkpoint": "exporter",
    "bundle_in_precision": "exporter",
    "bundle_name": "sources",
    "diffusers_folder_of": "sources.diffusers_folder",
    "read_checkpoint": "sources.checkpoint",
    "read_diffusers_folder": "sources.diffusers_folder",
    "read_source": "sources",
    "vae_folder": "sources.diffusers_folder",
}
__getattr__ = lazily(__name__, HOMES)
