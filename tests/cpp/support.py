"""What tests of libditedge share: its status numbers, recorded loops, bundles that are changed."""

from __future__ import annotations

import ctypes
import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from capi_ctypes import Ditedge, Info, Options, load

from ditedge.runtime import open_bundle
from ditedge.runtime.samplers.program import Program
from tests.conftest import golden_case

ARGUMENT, BUNDLE, PROGRAM, REQUEST, ENGINE, NO_DEVICE, CANCELLED = range(1, 8)
FOX, BOOT, SNOW = [4, 5, 6, 1], [9, 5, 7, 12, 3, 1], [8, 1]  # token ids of prompts


def edit(bundle: Path, **changes: object) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def damaged(text: str, count: int) -> Iterator[str]:
    """A JSON text cut short, or with one value replaced."""
    chooser = random.Random(7)
    values = ["-1", "0", "1e308", '"x"', "null", "[]", "{}", "9223372036854775807", "18446744073709551615", "[[[[]]]]"]
    for i in range(count):
        position = chooser.randrange(len(text))
        if i % 3 == 0:
            yield text[:position]
        else:
            yield text[:position] + chooser.choice(values) + text[position + chooser.randrange(4) :]


# The same graphs in the same library on the same numbers: only the number of threads could change the sums' order.
TOLERANCE = 1e-5


# Every recorded case but the one of 250 steps.
LOOPS = [
    (case, loop)
    for case in ("gray1_cfg", "latent4_learned_sigma", "pixel3_no_null_class")
    for loop in golden_case(case)["loops"]
    if loop["name"] != "ddpm250_nocfg"
]


def program_of(bundle_folder: Path, loop: dict) -> Program:
    bundle = open_bundle(bundle_folder)
    settings = {"sampler": loop["loop"], "respacing": loop["respacing"], "clip_x0": loop["clip"]}
    if loop["loop"] == "ddim":
        settings["eta"] = loop["eta"] or None
    elif not bundle.manifest.model.learned_variance:
        settings["variance"] = "fixed-small" if loop.get("sigma_small") else "fixed-large"
    return bundle.program(**settings)


class Later(Ditedge):
    """A bundle that is open; its session is opened later."""

    def __init__(self, library: Path, bundle: Path | str, check_hashes: int = 1) -> None:
        self.c = load(library)
        self.bundle, self.session, self.info = ctypes.c_void_p(), ctypes.c_void_p(), Info(size=ctypes.sizeof(Info))
        self._check(self.c.ditedge_bundle_open(str(bundle).encode(), check_hashes, ctypes.byref(self.bundle)))
        self._check(self.c.ditedge_bundle_info(self.bundle, ctypes.byref(self.info)))

    def open_session(self, engine_library: Path) -> None:
        self.c.ditedge_session_close(self.session)
        options = Options()
        self._check(self.c.ditedge_session_options_init(ctypes.byref(options), ctypes.c_size_t(ctypes.sizeof(options))))
        options.library, options.threads = str(engine_library).encode(), 1
        self._check(self.c.ditedge_session_open(self.bundle, ctypes.byref(options), ctypes.byref(self.session)))

    def latents(self) -> np.ndarray:
        return self.generate([3], [7], images=False, program=b"ddim-25")


def rehash(bundle: Path, **changes: object) -> None:
    """The manifest says what the files are, and `changes`."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text()) | changes
    for file in bundle.rglob("*"):
        if file.is_file() and str(file.relative_to(bundle)) in manifest["files"]:
            raw = file.read_bytes()
            info = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
            manifest["files"][str(file.relative_to(bundle))] = info
    path.write_text(json.dumps(manifest))
