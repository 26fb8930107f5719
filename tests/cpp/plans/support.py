"""The double's controls; a recorded trajectory replayed."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

from capi_ctypes import Ditedge
from safetensors.numpy import load_file

from ditedge.runtime.loop.verify import relative_error
from tests.conftest import GOLDEN

LABELS, SEEDS = [3, 1, 3, 9, 0], [11, 12, 13, 14, 15]


class Double:
    """The double's controls. Everything that it found wrong is asserted to be nothing at the end of a test."""

    def __init__(self, path: Path) -> None:
        self.path, self.c = path, ctypes.CDLL(str(path))

    def reset(self, devices: int = 1, version: int = 0, fail_after: int = -1) -> None:
        self.c.double_reset(devices, version, fail_after)

    def refuse_captures(self, after: int) -> None:
        """From the next but `after` on."""
        self.c.double_refuse_captures(after)

    @property
    def report(self) -> dict:
        text = ctypes.create_string_buffer(10_000)
        assert self.c.double_report(text, ctypes.c_size_t(len(text))) < len(text)
        return json.loads(text.value)


def replay(handle: Ditedge, case: str, loop: dict, program: Path, **fields: object) -> float:
    """A recorded trajectory's final latents -> relative error against PyTorch's."""
    recorded = load_file(GOLDEN / case / f"{loop['name']}.safetensors")
    labels = recorded["y"].tolist()
    fields = {"guidance": loop["cfg"] or 1.0, "program_file": str(program).encode(), "batch": len(labels)} | fields
    mine = handle.generate(labels, [0] * len(labels), images=False, noise=(recorded["z"], recorded["noise"]), **fields)
    return relative_error(mine, recorded["x"][-1])
