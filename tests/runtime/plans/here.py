"""What this machine has to build and run plans with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from ditedge.runtime.plans import library as tensorrt_library

needs_rtx = pytest.mark.skipif(
    not tensorrt_library.importlib.util.find_spec("tensorrt_rtx"), reason="tensorrt-rtx-cu13 is not installed"
)
has_gpu = tensorrt_library.first_gpu() is not None
without_gpu = pytest.mark.skipif(has_gpu, reason="there is a GPU")


@dataclass(frozen=True)
class Built:
    """A bundle with plans, and the progress of their build."""

    folder: Path
    told: list[tuple[str, int, int]]
