"""Run a bundle: `open_bundle`, `bundle.program(...)`, `generate`. Needs numpy and one engine library, no PyTorch."""

from .bundle import Bundle, open_bundle
from .engine import EngineOptions
from .errors import Cancelled, DitedgeError, NotFiniteError
from .generate import Progress, generate
from .programs import Program
from .sampler import Sampler

__all__ = [
    "Bundle",
    "Cancelled",
    "DitedgeError",
    "EngineOptions",
    "NotFiniteError",
    "Program",
    "Progress",
    "Sampler",
    "generate",
    "open_bundle",
]
