"""Golden files are untrusted: of other shapes, types or labels they are one sentence. On a device they may be missing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from ditedge.cli import main
from ditedge.runtime import Session, open_bundle
from ditedge.runtime.errors import BundleError
from ditedge.runtime.loop.verify import golden_here, replay

NAME = "ddim-10"

CASES: dict[str, tuple[Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], str]] = {
    "two z": (lambda t: {"z": np.concatenate([t["z"]] * 2)}, r"'z' is float32 \[4, 1, 8, 8\], expected float32 \[2, 1, 8, 8\]"),
    "flat noise": (lambda t: {"noise": t["noise"].reshape(-1)}, "'noise' is float32"),
    "narrow x": (lambda t: {"x": np.ascontiguousarray(t["x"][..., :-1])}, "'x' is float32"),
    "fewer steps": (lambda t: {"x": t["x"][:-1]}, "'x' is float32"),
    "no samples": (lambda t: {"y": t["y"][:0]}, r"'y' is \[0\], expected \[B\] of at least one sample"),
    "a number y": (lambda t: {"y": np.int64(3)[None].reshape(())}, r"'y' is \[\], expected \[B\]"),
    "float y": (lambda t: {"y": t["y"].astype(np.float32)}, "'y' is float32"),
    "half x": (lambda t: {"x": t["x"].astype(np.float16)}, "'x' is float16"),
    "double z": (lambda t: {"z": t["z"].astype(np.float64)}, "'z' is float64"),
    "label": (lambda t: {"y": t["y"] * 0 + 10**15}, "label 1000000000000000 is none of the classes 0 to 9"),
    "infinite z": (lambda t: {"z": t["z"] * np.float32("inf")}, "'z' has numbers that are not finite"),
    "x is not a number": (lambda t: {"x": t["x"] * np.float32("nan")}, "'x' has numbers that are not finite"),
    "negative label": (lambda t: {"y": t["y"] * 0 - 1}, "label -1 is none of the classes"),
}  # fmt: skip


def rewritten(bundle: Path, raw: bytes) -> Path:
    """Puts `raw` in the place of one golden file, with its hash in the manifest."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    name = next(
        golden["file"] for golden in manifest["golden"] if golden["program"] == manifest["golden"][0]["program"]
    )
    (bundle / name).write_bytes(raw)
    manifest["files"][name] = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle / name


def first_golden(bundle: Path) -> Path:
    return bundle / json.loads((bundle / "manifest.json").read_text())["golden"][0]["file"]


@pytest.mark.parametrize("name", CASES)
def test_golden_of_other_shapes(gray_bundle: Path, tmp_path: Path, name: str) -> None:
    change, complaint = CASES[name]
    tensors = load_file(first_golden(gray_bundle))
    save_file(tensors | change(tensors), tmp_path / "g.safetensors")
    path = rewritten(gray_bundle, (tmp_path / "g.safetensors").read_bytes())
    with Session(open_bundle(gray_bundle)) as session, pytest.raises(BundleError, match=complaint) as caught:
        replay(session, session.bundle.manifest.golden[0])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "BF16", "Q9", "BOOL"])
def test_golden_of_other_types(gray_bundle: Path, dtype: str) -> None:
    header = json.dumps({"z": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2]}}).encode()
    rewritten(gray_bundle, len(header).to_bytes(8, "little") + header + b"\0\0")
    with Session(open_bundle(gray_bundle)) as session:
        with pytest.raises(BundleError, match="not a readable golden file|is missing|expected"):
            replay(session, session.bundle.manifest.golden[0])


@pytest.mark.parametrize("raw", [b"", b"\xff" * 100, (10**18).to_bytes(8, "little") + b"{}"])
def test_golden_that_is_no_safetensors(gray_bundle: Path, raw: bytes) -> None:
    rewritten(gray_bundle, raw)
    with Session(open_bundle(gray_bundle)) as session, pytest.raises(BundleError, match="not a readable golden file"):
        replay(session, session.bundle.manifest.golden[0])


def test_verify_says_what_is_left_out(gray_bundle: Path) -> None:
    first_golden(gray_bundle).unlink()
    bundle = open_bundle(gray_bundle)
    assert golden_here(bundle) == bundle.manifest.golden[1:]
    some = CliRunner().invoke(main, ["verify", "--engine", str(gray_bundle)])
    assert some.exit_code == 0 and f"left out here: {bundle.manifest.golden[0].file}" in some.output
    shutil.rmtree(gray_bundle / "golden")
    none = CliRunner().invoke(main, ["verify", "--engine", str(gray_bundle)])
    assert none.exit_code != 0 and "no golden data here" in f"{none.output}{none.exception}"
