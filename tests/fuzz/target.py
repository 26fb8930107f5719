"""What is fuzzed: a hostile document, and the reading of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

Files = dict[str, bytes]  # by name in the case's folder


@dataclass(frozen=True)
class Target:
    name: str
    make: Callable[[Random], Files]
    read: Callable[[Path], Any]
