"""Checkpoint -> bundle: `bundle_from_checkpoint`. Needs torch, onnx, onnxscript and onnxruntime."""

from .add_decoder import add_decoder
from .convert import bundle_in_precision, convert_bundle
from .exporter import ExportOptions, bundle_from_checkpoint
from .networks.dit import DiT, DiTConfig
from .sources import bundle_name, read_source
from .sources.checkpoint import Checkpoint, read_checkpoint
from .sources.diffusers_folder import diffusers_folder_of, read_diffusers_folder, vae_folder

__all__ = [
    "Checkpoint",
    "DiT",
    "DiTConfig",
    "ExportOptions",
    "add_decoder",
    "bundle_from_checkpoint",
    "bundle_in_precision",
    "bundle_name",
    "convert_bundle",
    "diffusers_folder_of",
    "read_checkpoint",
    "read_diffusers_folder",
    "read_source",
    "vae_folder",
]
