"""What is used is what was hashed: a bundle's files are opened and read once, whatever becomes of them after."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ditedge.runtime import open_bundle
from ditedge.runtime.bundle import held_files
from ditedge.runtime.bundle.writing import copy_files
from ditedge.runtime.errors import BundleError, DitedgeError
from tests.runtime.bundle.support import list_file, sampled


def vanish(folder: Path) -> None:
    shutil.rmtree(folder)


def swap(folder: Path) -> None:
    for name in ("step.onnx", "conditioner.onnx", "programs/ddim-25.json", "manifest.json"):
        (folder / "new").write_bytes(b"not what was hashed")
        os.replace(folder / "new", folder / name)


def edit_programs(folder: Path) -> None:
    for path in (folder / "programs").iterdir():
        path.write_text("{}")


@pytest.mark.parametrize("change", [vanish, swap, edit_programs, lambda folder: os.replace(folder, f"{folder}-away")])
def test_what_happens_to_names_after_opening_changes_nothing(
    gray_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    monkeypatch.chdir(gray_bundle.parent)
    bundle = open_bundle(Path(gray_bundle.name))  # relative: a daemon leaves for / after it
    expected = sampled(open_bundle(gray_bundle))
    change(gray_bundle)
    monkeypatch.chdir("/")
    assert np.array_equal(sampled(bundle), expected) and np.array_equal(sampled(bundle), expected)


@pytest.mark.parametrize("how", ["one bit", "shorter", "longer", "empty"])
@pytest.mark.parametrize("old", [True, False])
def test_bytes_that_change_after_opening_are_refused(gray_bundle: Path, how: str, old: bool) -> None:
    path = gray_bundle / "step.onnx"
    if old:
        for file in gray_bundle.rglob("*"):
            os.utime(file, (1, 1))
    bundle, raw, times = open_bundle(gray_bundle), bytearray(path.read_bytes()), path.stat()
    raw[len(raw) // 2] ^= 1
    path.write_bytes({"one bit": raw, "shorter": raw[:-1], "longer": raw + b"\0", "empty": b""}[how])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    for use in (sampled, lambda bundle: bundle.graph_file("step")):
        with pytest.raises(BundleError, match=r"step\.onnx: does not match its hash"):
            use(bundle)


def test_bytes_that_were_written_again_are_the_same(gray_bundle: Path) -> None:
    bundle, path = open_bundle(gray_bundle), gray_bundle / "step.onnx"
    path.write_bytes(path.read_bytes())
    assert sampled(bundle).shape == (2, 8, 8, 1) and bundle.graph_file("step") == path


def test_one_who_reads_by_name_is_told_of_another_file(gray_bundle: Path) -> None:
    bundle, path = open_bundle(gray_bundle), gray_bundle / "step.onnx"
    shutil.copyfile(path, gray_bundle / "copy")
    os.replace(gray_bundle / "copy", path)
    with pytest.raises(BundleError, match=r"step\.onnx was replaced since the bundle was opened"):
        bundle.graph_file("step")
    path.unlink()
    with pytest.raises(BundleError, match=r"step\.onnx is gone"):
        bundle.graph_file("step")


def test_every_byte_is_read_once(gray_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = [], held_files._read_at

    def counted(descriptor: int, offset: int) -> bytes:
        read.append(block := real(descriptor, offset))
        return block

    for file in gray_bundle.rglob("*"):
        os.utime(file, (1, 1))  # the change time cannot be set: wait until no file is young
    monkeypatch.setattr(held_files, "YOUNG_NS", 0)
    monkeypatch.setattr(held_files, "_read_at", counted)
    bundle = open_bundle(gray_bundle)
    sampled(bundle)
    assert sum(map(len, read)) == sum(info.bytes for info in bundle.manifest.files.values())


def test_descriptors_are_given_back(gray_bundle: Path) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("descriptors are counted in /proc")
    bundle = open_bundle(gray_bundle)
    before = opened()
    del bundle
    assert opened() == before - 3 - 2  # three graphs, two golden files


# Weights in other files


def test_golden_and_quality_may_be_left_out(gray_bundle: Path) -> None:
    (gray_bundle / "quality").mkdir()
    (gray_bundle / "quality" / "report.html").write_text("x")
    list_file(gray_bundle, "quality/report.html")
    open_bundle(gray_bundle)
    expected = sampled(open_bundle(gray_bundle))
    shutil.rmtree(gray_bundle / "golden")
    shutil.rmtree(gray_bundle / "quality")
    bundle = open_bundle(gray_bundle)
    assert np.array_equal(sampled(bundle), expected)
    with pytest.raises(BundleError, match=r"golden/.* is left out here: work on a complete copy"):
        bundle.file(bundle.manifest.golden[0].file)
    (gray_bundle / "programs" / "ddpm-50.json").write_text("{}")
    with pytest.raises(BundleError, match=r"ddpm-50\.json: does not match its hash"):
        open_bundle(gray_bundle)


def test_a_derived_bundle_is_made_of_what_was_hashed(gray_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(gray_bundle)
    (tmp_path / "new").mkdir()
    step = gray_bundle / "step.onnx"
    os.replace(shutil.copyfile(step, tmp_path / "x"), step)
    with pytest.raises(BundleError, match=r"step\.onnx was replaced since the bundle was opened"):
        copy_files(bundle, tmp_path / "new", ())
    shutil.rmtree(gray_bundle / "golden")
    with pytest.raises(BundleError, match=r"golden/.* is left out here: work on a complete copy of the bundle"):
        copy_files(open_bundle(gray_bundle), tmp_path / "new", ())


def test_golden_that_is_there_is_hashed(gray_bundle: Path) -> None:
    path = next((gray_bundle / "golden").iterdir())
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(BundleError, match="golden/.*does not match its hash"):
        open_bundle(gray_bundle)


def test_a_program_is_never_optional(gray_bundle: Path) -> None:
    path = gray_bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["golden/p.json"] = manifest["files"].pop(manifest["programs"]["ddpm-50"])
    manifest["programs"]["ddpm-50"] = "golden/p.json"
    path.write_text(json.dumps(manifest))
    with pytest.raises(DitedgeError, match=r"golden/p\.json is missing"):
        open_bundle(gray_bundle)
