"""Checkpoint -> bundle: `bundle_from_checkpoint`. Needs torch, onnx, onnxscript and onnxruntime."""

from .bundle_writer import ExportOptions, bundle_from_checkpoint
from .checkpoint import Checkpoint, read_checkpoint
from .network import DiT, DiTConfig

__all__ = ["Checkpoint", "DiT", "DiTConfig", "ExportOptions", "bundle_from_checkpoint", "read_checkpoint"]
