"""Run a bundle: `open_bundle`, `bundle.program(...)`, `generate`. Needs numpy and one engine library, no PyTorch."""

from .bundle.open import Bundle, open_bundle
from .errors import Cancelled, DitedgeError, NotFiniteError
from .loop.engine import EngineOptions
from .loop.generate import generate
from .loop.loop import StepEvent, Watcher
from .loop.session import Session
from .samplers.program import Program

__all__ = [
    "Bundle",
    "Cancelled",
    "DitedgeError",
    "EngineOptions",
    "NotFiniteError",
    "Program",
    "Session",
    "StepEvent",
    "Watcher",
    "generate",
    "open_bundle",
]
