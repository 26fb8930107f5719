"""Checkpoint -> bundle: `bundle_from_checkpoint`. Needs torch, onnx, onnxscript and onnxruntime."""

from typing import TYPE_CHECKING

from ..runtime.lazy import lazily

if TYPE_CHECKING:
    from .exporter import bundle_from_checkpoint as bundle_from_checkpoint
    from .exporter import bundle_in_precision as bundle_in_precision
    from .networks.dit import DiT as DiT
    from .networks.dit import DiTConfig as DiTConfig
    from .options import ExportOptions as ExportOptions
    from .sources.checkpoint import Checkpoint as Checkpoint
    from .sources.places import bundle_name as bundle_name
    from .sources.places import diffusers_folder_of as diffusers_folder_of
    from .sources.places import vae_folder as vae_folder
    from .sources.read import read_checkpoint as read_checkpoint
    from .sources.read import read_source as read_source
    from .with_decoder import add_decoder as add_decoder

HOMES = {
    "Checkpoint": "sources.checkpoint",
    "DiT": "networks.dit",
    "DiTConfig": "networks.dit",
    "ExportOptions": "options",
    "add_decoder": "with_decoder",
    "bundle_from_checkpoint": "exporter",
    "bundle_in_precision": "exporter",
    "bundle_name": "sources.places",
    "diffusers_folder_of": "sources.places",
    "read_checkpoint": "sources.read",
    "read_source": "sources.read",
    "vae_folder": "sources.places",
}
__getattr__ = lazily(__name__, HOMES)
