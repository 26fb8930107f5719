"""What libditedge reads of a bundle: opened once, used as it was hashed, within the limits of docs/format.md."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from capi_ctypes import DitedgeError

from tests.cpp.support import BUNDLE, rehash


def test_after_open_nothing_is_read_by_name(
    later, gray_bundle: Path, onnxruntime_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(gray_bundle.parent)
    handle = later(gray_bundle.name)
    handle.open_session(onnxruntime_library)
    expected = handle.latents()
    programs = gray_bundle / "programs"
    shutil.copy(programs / "ddpm-50.json", programs / "ddim-25.json")
    assert np.array_equal(handle.latents(), expected), "an edited program runs"
    monkeypatch.chdir("/")
    assert np.array_equal(handle.latents(), expected), "a daemon's working folder"
    shutil.rmtree(gray_bundle)
    assert np.array_equal(handle.latents(), expected), "the bundle was deleted"
    handle.open_session(onnxruntime_library)
    assert np.array_equal(handle.latents(), expected), "another sampler of a deleted bundle"


def overwritten(path: Path) -> None:
    """Other bytes of the same size in the same file, with the old modification time."""
    before = path.stat()
    raw = path.read_bytes()
    with path.open("r+b") as file:
        file.write(raw[:-1] + bytes([raw[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "same size and time": overwritten,
    "cut short": lambda path: os.truncate(path, 100),
    "emptied": lambda path: path.write_bytes(b""),
    "grown": lambda path: path.write_bytes(b"x" * 9_999_999),
}


# What was written less than two seconds ago is hashed again anyway.
@pytest.mark.parametrize(("name", "seconds"), [*((name, 0) for name in CHANGES), ("same size and time", 2.1)])
def test_a_graph_that_is_written_to_after_open_is_refused(
    later, gray_bundle: Path, onnxruntime_library: Path, name: str, seconds: float
) -> None:
    time.sleep(seconds)
    handle = later(gray_bundle)
    CHANGES[name](gray_bundle / "step.onnx")
    with pytest.raises(DitedgeError, match=r"step.onnx: does not match its hash") as caught:
        handle.open_session(onnxruntime_library)
    assert caught.value.status == BUNDLE


def test_a_graph_that_is_replaced_after_open_is_the_old_one(
    later, gray_bundle: Path, golden_bundle, onnxruntime_library: Path
) -> None:
    handle = later(gray_bundle)
    handle.open_session(onnxruntime_library)
    expected = handle.latents()
    other = gray_bundle / "other.onnx"
    shutil.copy(golden_bundle("gray1_cfg", "x0") / "step.onnx", other)
    os.replace(other, gray_bundle / "step.onnx")
    handle.open_session(onnxruntime_library)
    assert np.array_equal(handle.latents(), expected)


def test_without_hashes_only_sizes_are_checked(later, gray_bundle: Path, onnxruntime_library: Path) -> None:
    path = gray_bundle / "programs" / "ddim-25.json"
    path.write_text(path.read_text().replace("ddim-25", "ddim-52"))
    with pytest.raises(DitedgeError, match="ddim-25.json: does not match its hash"):
        later(gray_bundle)
    handle = later(gray_bundle, check_hashes=0)
    handle.open_session(onnxruntime_library)
    handle.latents()
    path.write_text(path.read_text() + " ")
    with pytest.raises(DitedgeError, match="ddim-25.json: does not match"):
        later(gray_bundle, check_hashes=0)


def test_golden_and_quality_are_optional_and_checked(later, gray_bundle: Path) -> None:
    golden = sorted((gray_bundle / "golden").iterdir())
    (gray_bundle / "quality").mkdir()
    (gray_bundle / "quality" / "report.html").write_text("<p>")
    manifest = json.loads((gray_bundle / "manifest.json").read_text())
    rehash(gray_bundle, files=manifest["files"] | {"quality/report.html": {"sha256": "", "bytes": 0}})
    later(gray_bundle)
    (gray_bundle / "quality" / "report.html").write_text("<b>")
    with pytest.raises(DitedgeError, match="report.html: does not match"):
        later(gray_bundle)
    shutil.rmtree(gray_bundle / "quality")
    golden[0].unlink()
    later(gray_bundle)
    shutil.rmtree(gray_bundle / "golden")
    later(gray_bundle)
    (gray_bundle / "programs" / "ddim-25.json").unlink()
    with pytest.raises(DitedgeError, match="file programs/ddim-25.json is missing"):
        later(gray_bundle)


def test_what_is_used_is_not_optional(later, gray_bundle: Path) -> None:
    """A graph and a program in golden/ have to be there all the same."""
    manifest = json.loads((gray_bundle / "manifest.json").read_text())
    manifest["files"]["golden/step.onnx"] = manifest["files"].pop("step.onnx")
    manifest["graphs"]["step"]["file"] = "golden/step.onnx"
    (gray_bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DitedgeError, match=r"golden/step.onnx is missing") as caught:
        later(gray_bundle)
    assert caught.value.status == BUNDLE
    shutil.move(gray_bundle / "step.onnx", gray_bundle / "golden" / "step.onnx")
    later(gray_bundle)


def test_hashes(built: Path, tmp_path: Path) -> None:
    """Every length around a block's end, in pieces of every kind, with the processor's instructions and without."""
    random = np.random.default_rng(7)
    files = [tmp_path / f"{size:07d}" for size in (*range(200), 4095, 4096, 4097, 1_000_003)]
    for file in files:
        file.write_bytes(random.bytes(int(file.name)))
    expected = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    commands = {"fast": [], "portable": []}
    if shutil.which("qemu-x86_64-static") and os.uname().machine == "x86_64":
        commands["fast, where there are none"] = ["qemu-x86_64-static", "-cpu", "Haswell"]
    for kind, prefix in commands.items():
        for piece in (1 << 30, 64, 63, 7):
            command = [*prefix, built / "ditedge-sha256", kind, str(piece), *files]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            assert done.stdout.split() == expected, (kind, piece)


def test_damage_is_found_in_every_file(later, gray_bundle: Path) -> None:
    """Files are hashed in parallel, in another order than they are listed."""
    big = gray_bundle / "big.bin"
    big.write_bytes(bytes(20 << 20))  # several threads
    manifest = json.loads((gray_bundle / "manifest.json").read_text())
    rehash(gray_bundle, files=manifest["files"] | {"big.bin": {"sha256": "", "bytes": 0}})
    later(gray_bundle)
    for name in (*manifest["files"], "big.bin"):
        raw = (gray_bundle / name).read_bytes()
        (gray_bundle / name).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        with pytest.raises(DitedgeError, match=f"{re.escape(name)}: does not match its hash"):
            later(gray_bundle)
        (gray_bundle / name).write_bytes(raw)
    later(gray_bundle)


def test_a_process_without_descriptors(built: Path, gray_bundle: Path) -> None:
    """The sentence says what is wrong, not that the bundle would be."""
    code = "import ctypes, resource, sys\n"
    code += "library, bundle = ctypes.CDLL(sys.argv[1]), ctypes.c_void_p()\n"
    code += "library.ditedge_last_error.restype = ctypes.c_char_p\n"
    code += "resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[3]),) * 2)\n"
    code += "print(library.ditedge_bundle_open(sys.argv[2].encode(), 1, ctypes.byref(bundle)), library.ditedge_last_error().decode())"
    for limit, words in ((3, f"{gray_bundle} is not a bundle: Too many"), (8, "cannot read .*: Too many"), (100, "$")):
        command = [sys.executable, "-c", code, str(built / "libditedge.so"), str(gray_bundle), str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert re.match(f"{0 if limit == 100 else BUNDLE} {words}", done.stdout), done.stdout
