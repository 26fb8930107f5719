"""The double's controls; a recorded trajectory replayed."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import numpy as np
from capi_ctypes import Ditedge
from safetensors.numpy import load_file

from ditedge.runtime import generate
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.loop.verify import relative_error
from tests.conftest import GOLDEN
from tests.cpp.support import TOLERANCE

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


def check_seeded_pictures(handle: Ditedge, bundle: Bundle) -> None:
    """Batches, a smaller last one, other labels, guidance and seeds, classes to guide away from: Python's, and again."""
    for program, fields in (
        ("ddpm-50", {}),
        ("ddpm-50", {"batch": 2}),
        ("ddim-25", {"guidance": 1.0}),
        ("ddim-25", {"guidance": 2.5, "away_from": [4, -1, 0, 2, -1]}),
    ):
        settings = fields | {"program": bundle.program(program)}
        if "away_from" in fields:
            settings["away_from"] = [None if label < 0 else label for label in fields["away_from"]]
        mine = handle.generate(LABELS, SEEDS, images=False, program=program.encode(), **fields)
        assert relative_error(mine, generate(bundle, LABELS, SEEDS, output="latents", **settings)) < TOLERANCE
        images = handle.generate(LABELS, SEEDS, program=program.encode(), **fields)
        assert np.mean(images == generate(bundle, LABELS, SEEDS, **settings)) >= 0.999
        again = handle.generate(LABELS, SEEDS, program=program.encode(), **fields)
        assert np.array_equal(images, again), "same seed, same image"
