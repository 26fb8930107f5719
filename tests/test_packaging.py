"""The wheel: one import package that holds the tree, and a picture from it where torch and onnx are not installed."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import BUNDLES, PIXART, ROOT

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", out, ROOT], check=True)
    (path,) = out.glob("*.whl")
    return path


def test_wheel_holds_the_tree_and_nothing_else(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {name for name in names if name.startswith("ditedge/")}
    tree = {
        f"ditedge/{path.relative_to(ROOT).as_posix()}"
        for folder in ("export", "runtime", "calibration")
        for path in (ROOT / folder).rglob("*.py")
    }
    tree |= {f"ditedge/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "runtime/serving/page").iterdir()}
    bridge = {f"ditedge/{path.name}" for path in (ROOT / "ditedge").iterdir() if path.is_file()}
    assert {"ditedge/__init__.py", "ditedge/__main__.py", "ditedge/terminal.py"} <= bridge
    assert modules == tree | bridge | {"ditedge/cli.py"}
    assert {name.split("/")[0] for name in names} == {"ditedge", "ditedge-0.1.0.dist-info"}
    entry_points = zipfile.ZipFile(wheel).read("ditedge-0.1.0.dist-info/entry_points.txt").decode()
    assert "ditedge = ditedge.__main__:main" in entry_points
    archive = zipfile.ZipFile(wheel)
    assert not [name for name in names if str(ROOT).encode() in archive.read(name)], "a path of the build machine"


@pytest.mark.slow
def test_the_wheel_alone_makes_the_demo_picture(wheel: Path, tmp_path: Path) -> None:
    """Export here; run in a new environment with neither torch nor onnx: the same picture, byte for byte."""
    bundle = tmp_path / "fashion"
    model = ROOT / "models" / "fashion-dit"
    arguments = ["--ckpt", f"{model}.safetensors", "--heads", "3", "--classes", f"{model}.classes.txt", "--out", bundle]
    subprocess.run([sys.executable, ROOT / "cli.py", "export", *arguments], check=True)
    sample = ["run", "--engine", bundle, "--class", "Ankle boot", "--class", "Bag", "--seed", "7", "-o"]
    subprocess.run([sys.executable, ROOT / "cli.py", *sample, tmp_path / "here.png"], check=True)

    venv.create(tmp_path / "device", with_pip=True)
    run_alone(tmp_path, f"{wheel}[cpu]", ("torch", "onnx", "export", "runtime"), *sample, tmp_path / "there.png")
    assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()


@pytest.mark.slow
def test_the_wheel_and_tokenizers_make_a_picture_of_words(wheel: Path, tmp_path: Path) -> None:
    """Extra [text] adds tokenizers, and no PyTorch, transformers or diffusers: the same picture, byte for byte."""
    sample = ["run", "--engine", BUNDLES / PIXART, "--prompt", "a red fox", "--seed", "7", "-o"]
    subprocess.run([sys.executable, ROOT / "cli.py", *sample, tmp_path / "here.png"], check=True)
    venv.create(tmp_path / "device", with_pip=True)
    without = ("torch", "onnx", "transformers", "diffusers", "export", "runtime")
    run_alone(tmp_path, f"{wheel}[cpu,text]", without, *sample, tmp_path / "there.png")
    assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()


def run_alone(folder: Path, package: str, without: tuple[str, ...], *arguments: object) -> None:
    """ditedge's command in the environment folder/device, which gets the package and has none of those modules."""
    python = folder / "device" / "bin" / "python"
    install = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "-c", ROOT / "constraints.txt"]
    subprocess.run([*install, package], check=True)
    probe = f"import importlib.util as u; print([n for n in {without} if u.find_spec(n)])"
    found = subprocess.run([python, "-I", "-c", probe], cwd=folder, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [folder / "device" / "bin" / "ditedge", *(str(argument) for argument in arguments)]
    subprocess.run(command, cwd=folder, env=environment, check=True)
