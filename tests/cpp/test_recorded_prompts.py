"""Recorded prompts that are none, or another bundle's: libditedge refuses them in a sentence, as Python does."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capi_ctypes import DitedgeError
from safetensors.numpy import save

from ditedge.runtime import generate
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.errors import DitedgeError as PythonError
from ditedge.runtime.loop.prompts import check_prompt, read_prompt
from tests.conftest import BUNDLES, PIXART
from tests.cpp.support import BUNDLE, FOX, REQUEST, edit
from tests.fuzz.mutations import mutated_safetensors

FOLDER = BUNDLES / PIXART


def file_of(header: object, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def hostile(encoder: str) -> list[tuple[bytes, str]]:
    """Recorded prompts that are none, or not of this bundle, and what is said of each."""
    said = {"ditedge-prompt": json.dumps({"version": "1", "encoder_sha256": encoder})}
    rows, no = np.ones((3, 16), np.float32), "not a recorded prompt of `ditedge encode`"

    def tensor(shape: list[Any], ends: list[Any], dtype: str = "F32") -> dict[str, Any]:
        return {"__metadata__": said, "hidden": {"dtype": dtype, "shape": shape, "data_offsets": ends}}

    other = {"ditedge-prompt": json.dumps({"version": "1", "encoder_sha256": "0" * 64})}
    later = {"ditedge-prompt": json.dumps({"version": "2", "encoder_sha256": encoder})}
    return [
        (b"", no),
        (b"nothing", no),
        (file_of(tensor([1, 16], [0, 64]), bytes(64), 2**63), no),
        (file_of(tensor([1, 16], [0, 64]), bytes(64), 2**20), no),
        (file_of(b"[" * 100_000), "nested"),
        (file_of(b"{"), "JSON"),
        (file_of([1]), no),
        (save({"hidden": rows}), no),
        (save({"x": rows}, said), no),
        (save({"hidden": rows}, later), no),
        (save({"hidden": rows}, {"ditedge-prompt": "[]"}), no),
        (save({"hidden": rows}, {"ditedge-prompt": "{"}), "JSON"),
        (
            save({"hidden": rows}, other),
            "was recorded with another text encoder (sha256 000000000000...), this bundle's",
        ),
        (save({"hidden": rows.astype(np.float64)}, said), "finite float32 numbers"),
        (save({"hidden": np.full((2, 16), np.nan, np.float32)}, said), "finite float32 numbers"),
        (save({"hidden": np.ones((0, 16), np.float32)}, said), "finite float32 numbers"),
        (save({"hidden": np.ones((3, 15), np.float32)}, said), "has rows of 15 numbers, the model reads 16"),
        (save({"hidden": np.ones((121, 16), np.float32)}, said), "a prompt has 121 tokens, the model reads 120"),
        (file_of(tensor([2**60, 16], [0, 64]), bytes(64)), no),
        (file_of(tensor([2**62, 2**62], [0, 64]), bytes(64)), no),
        (file_of(tensor([4, 16], [0, 64]), bytes(64)), no),
        (file_of(tensor([1, 16], [0, 128]), bytes(64)), "data_offsets"),
        (file_of(tensor([1, 16], [64, 0]), bytes(64)), "data_offsets"),
        (file_of(tensor([1, 16], [-64, 0]), bytes(64)), "data_offsets"),
        (file_of(tensor([1, 16], [0, 2**64]), bytes(64)), "data_offsets"),
        (file_of(tensor([1, -16], [0, 64]), bytes(64)), "shape"),
    ]


def test_hostile_recorded_prompts(opened, bundle: Bundle, tmp_path: Path) -> None:
    """One sentence with the file's name each; Python refuses them, too."""
    handle, file = opened(FOLDER), tmp_path / "p.safetensors"
    for raw, words in hostile(bundle.manifest.text.encoder_sha256):  # type: ignore[union-attr, arg-type]
        file.write_bytes(raw)
        with pytest.raises(DitedgeError) as caught:
            handle.prompt(file)
        assert words in str(caught.value) and str(file) in str(caught.value), raw[:200]
        assert caught.value.status == REQUEST
        with pytest.raises(PythonError):
            generate(bundle, seeds=[1], prompts=[read_prompt(file, bundle)])
    with pytest.raises(DitedgeError, match="cannot read /nowhere: No such file"):
        handle.prompt(Path("/nowhere"))


def test_mutated_recorded_prompts(opened, bundle: Bundle, recorded: Path, tmp_path: Path) -> None:
    """What Python takes is taken, and nothing but a refusal comes of the others."""
    handle, file, raw = opened(FOLDER), tmp_path / "p.safetensors", recorded.read_bytes()
    taken = 0
    for index in range(300):
        file.write_bytes(mutated_safetensors(random.Random(index), raw))
        try:
            prompt = read_prompt(file, bundle)
            check_prompt(bundle, prompt)
            fits = True
        except PythonError:
            fits = False
        try:
            handle.close_prompt(handle.prompt(file))
            taken += 1
        except DitedgeError as error:
            assert not fits and error.status == REQUEST
    assert taken


def test_an_empty_prompt_that_is_none(opened, tmp_path: Path) -> None:
    """Guidance leads away from it: a bundle's damaged one is the bundle's fault."""
    shutil.copytree(FOLDER, tmp_path / "bundle")
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    name = manifest["text"]["empty"]
    (tmp_path / "bundle" / name).write_bytes(b"nothing")
    manifest["files"][name] = {"sha256": hashlib.sha256(b"nothing").hexdigest(), "bytes": 7}
    edit(tmp_path / "bundle", **manifest)
    handle = opened(tmp_path / "bundle")
    with pytest.raises(DitedgeError, match="empty.safetensors: not a recorded prompt") as caught:
        handle.generate(None, [1], prompts=[handle.prompt(FOX)])
    assert caught.value.status == BUNDLE
    handle.generate(None, [1], prompts=[handle.prompt(FOX)], guidance=1.0, program=b"ddim-10")
