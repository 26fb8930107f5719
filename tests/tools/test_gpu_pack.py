"""`make gpu-pack`: a bundle that the check can open, pinned wheels of what it imports, and no more than can be carried."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ditedge.runtime import open_bundle
from ditedge.runtime.errors import RequestError
from tests.conftest import BUNDLES, ROOT
from tests.gpu import cpp_checks
from tools import gpu_pack

THERE = (
    "numpy",
    "safetensors",
    "torch",
    "filelock",
    "fsspec",
    "jinja2",
    "markupsafe",
    "mpmath",
    "networkx",
    "setuptools",
    "sympy",
)

BARE = """
import importlib.machinery, importlib.metadata, os, runpy, sys
here = {name.lower().replace("_", "-") for name in sys.argv.pop(1).split(",")}
owners = importlib.metadata.packages_distributions()
class Bare(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        names = {owner.lower().replace("_", "-") for owner in owners.get(name.partition(".")[0], ())}
        if names and not names & here and "ditedge" not in names:
            return None
        return super().find_spec(name, path, target)
sys.meta_path[:] = [Bare if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
sys.path.insert(0, os.path.dirname(sys.argv[1]))
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def test_the_bundle_is_copied_without_what_its_manifest_does_not_name(tmp_path: Path) -> None:
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    shutil.copytree(BUNDLES / "gray1_cfg", bundle)
    (bundle / "engines" / "tensorrt").mkdir(parents=True)
    (bundle / "engines" / "tensorrt" / "dit.plan").write_bytes(b"plan")
    gpu_pack.copy_bundle(bundle, out)
    assert not (out / "engines").exists()
    opened = open_bundle(out)
    assert all(opened.has(golden.file) for golden in opened.manifest.golden) and opened.manifest.golden


def test_the_cpp_runtime_travels_where_it_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_pack, "ROOT", tmp_path)
    assert "without the C++ loop" in gpu_pack.copy_libraries(tmp_path / "out") and not (tmp_path / "out").exists()
    (tmp_path / "build" / "cpp").mkdir(parents=True)
    for name in gpu_pack.LIBRARIES:
        (tmp_path / "build" / "cpp" / name).write_bytes(name.encode())
    assert gpu_pack.copy_libraries(tmp_path / "out") == ""
    assert {path.name for path in (tmp_path / "out").iterdir()} == {cpp_checks.LIBRARY, cpp_checks.DOUBLE}


def test_every_package_is_pinned() -> None:
    pins = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert {*gpu_pack.PACKAGES, *gpu_pack.FOR_TRAINING} <= {name.replace("_", "-").lower() for name in pins}


def test_what_is_too_much_to_carry_is_refused() -> None:
    assert "1.0 MiB packed" in gpu_pack.check_size(1 << 20, 30 << 20)
    with pytest.raises(RequestError, match="45.0 MiB packed, 20.0 MiB of checkout: together more than 60 MiB"):
        gpu_pack.check_size(45 << 20, 20 << 20)


def test_the_check_imports_nothing_else() -> None:
    """What is neither packed nor there is hidden: a trajectory runs, on the CPU."""
    there = ",".join([*THERE, *gpu_pack.PACKAGES])
    command = [sys.executable, "-c", BARE, there, str(ROOT / "tests" / "gpu" / "gpu_check.py"), "--host", "--small"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    assert '"ok": "ddpm-10' in result.stdout


def images(folder: Path, count: int = 6) -> Path:
    """Fashion-MNIST's files, with noise for garments."""
    folder.mkdir()
    chooser = np.random.default_rng(0)
    for name, shape, most in zip(gpu_pack.TRAINED_ON, ((count, 28, 28), (count,)), (256, 10), strict=True):
        head = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
        (folder / name).write_bytes(gzip.compress(head + chooser.integers(most, size=shape, dtype=np.uint8).tobytes()))
    return folder


def test_training_imports_nothing_else_and_ends_in_time(tmp_path: Path) -> None:
    gpu_pack.copy_images(images(tmp_path / "data"), tmp_path / "packed")
    there = ",".join([*THERE, *gpu_pack.PACKAGES, *gpu_pack.FOR_TRAINING])
    command = [
        sys.executable,
        "-c",
        BARE,
        there,
        str(ROOT / "examples" / "train.py"),
        "--data",
        str(tmp_path / "packed"),
    ]
    command += ["--out", str(tmp_path / "run"), "--hidden-size", "8", "--depth", "1", "--num-heads", "1"]
    command += ["--batch-size", "2", "--minutes", "0.0001", "--precision", "fp32"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "step 1:" in result.stdout and "step 2:" not in result.stdout
    assert (tmp_path / "run" / "ema.safetensors").is_file()


def test_what_cannot_be_packed_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert gpu_pack.main(["--bundle", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "none" in capsys.readouterr().err
    assert gpu_pack.main(["--training", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "install dataset-fashion-mnist" in capsys.readouterr().err
    monkeypatch.setattr(gpu_pack, "ROOT", tmp_path)
    with pytest.raises(RequestError, match="is no git checkout"):
        gpu_pack.bytes_of_checkout()
