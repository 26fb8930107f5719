"""The formats that a network's weights can be written in: FORMATS lists them, each is one file of this folder.

A format's file is imported when it is used, because help texts list the table also where no onnx is installed.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from ...runtime.errors import RequestError
from .format import Half, Quantised


@dataclass(frozen=True)
class Entry:
    """command: which of `quantize` and `convert` writes it. what: of the step graph is in it, for the help."""

    command: str
    what: str


FORMATS = {  # name, of the option --precision and of the file that has its FORMAT
    "int8": Entry("quantize", "weights and activations"),
    "fp8": Entry("quantize", "weights and activations"),
    "int4": Entry("quantize", "weights alone"),
    "fp16": Entry("convert", "GEMMs and attention"),
    "bf16": Entry("convert", "GEMMs and attention"),
}


def formats_of(command: str) -> tuple[str, ...]:
    """The names that the command takes."""
    return tuple(name for name, entry in FORMATS.items() if entry.command == command)


def summary(command: str) -> str:
    """For its help: "int8 and fp8: weights and activations; int4: weights alone."."""
    names = formats_of(command)
    whats = dict.fromkeys(FORMATS[name].what for name in names)
    return "; ".join(f"{' and '.join(n for n in names if FORMATS[n].what == what)}: {what}" for what in whats) + "."


def quantised_format(name: str) -> Quantised:
    """Raises RequestError, which lists those that there are."""
    found = _format(name, "quantize")
    assert isinstance(found, Quantised)
    return found


def half_format(name: str) -> Half:
    """Raises RequestError, which lists those that there are."""
    found = _format(name, "convert")
    assert isinstance(found, Half)
    return found


def _format(name: str, command: str) -> object:
    if name not in formats_of(command):
        raise RequestError(f"precision '{name}': `{command}` knows {', '.join(formats_of(command))}")
    return importlib.import_module(f"{__name__}.{name}").FORMAT
