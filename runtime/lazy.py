"""Packages whose names are imported when they are used, so that a command's help loads no torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package. homes: name -> the module that it is imported from, as after a dot.

    No name may be that of a module of the package: an import of the module would take its place.
    """

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(importlib.import_module(f".{homes[name]}", package), name)

    return __getattr__
