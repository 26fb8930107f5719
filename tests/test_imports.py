"""Who may import what: the runtime runs where torch and onnx are not installed, and help is quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDERS = ("export", "runtime", "calibration")

BLOCKED = """
import importlib, pkgutil, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "onnx_ir", "onnxscript", "diffusers") or name.startswith(
            ("ditedge.export", "ditedge.calibration")
        ):
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
import ditedge.runtime, ditedge.cli
for module in pkgutil.walk_packages(ditedge.runtime.__path__, "ditedge.runtime."):
    importlib.import_module(module.name)
print(sum(name.startswith("ditedge.runtime.") for name in sys.modules))
"""


def test_runtime_imports_without_torch_and_onnx() -> None:
    result = subprocess.run([sys.executable, "-c", BLOCKED], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 15, "the walk over runtime/ found too few modules"


def test_runtimes_tests_get_their_bundles_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path; from tests.conftest import *;"
        "with_prediction(BUNDLES / 'gray1_cfg', Path(sys.argv[1]), 'x0'), with_labels(BUNDLES / 'gray1_cfg', Path(sys.argv[2]))"
    )
    made = [str(tmp_path / "a"), str(tmp_path / "b")]
    result = subprocess.run([sys.executable, "-c", code, *made], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_help_loads_no_engine() -> None:
    code = (
        "import sys; from ditedge.cli import main; main(['run', '--help'], standalone_mode=False);"
        "print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def imports(path: Path) -> Iterator[str]:
    """Absolute names of everything a file imports, also inside functions."""
    package = ["ditedge", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *filter(None, [node.module])])
            yield from (name, *(f"{name}.{alias.name}" for alias in node.names))  # `from .. import export` too


FILES = [path for folder in (*FOLDERS, "tests", "bench", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]
WITH_PYTORCH = ("test_gpu.py", "test_build_models.py")  # of runtime's tests: noise on CUDA, and plans of large models


def broken_rules(path: Path) -> Iterator[str]:
    folder, found = path.relative_to(ROOT).parts[0], list(imports(path))
    if path.is_relative_to(ROOT / "tests" / "runtime") and path.name not in WITH_PYTORCH:
        yield from (name for name in found if name.startswith(("torch", "diffusers", "ditedge.export")))
    for name in found:
        library = name.split(".")[0]
        if library in FOLDERS:
            yield f"{name}: write ditedge.{name}, the bare name makes a second copy"
        if folder == "runtime" and library in ("torch", "onnx", "onnx_ir", "onnxscript", "diffusers"):
            yield name
        if folder == "runtime" and name.startswith(("ditedge.export", "ditedge.calibration")):
            yield name
        if folder == "calibration" and (name.startswith("ditedge.export") or library == "torch"):
            yield name


def test_imports_follow_the_rules() -> None:
    broken = {str(path.relative_to(ROOT)): list(broken_rules(path)) for path in FILES}
    assert {path: names for path, names in broken.items() if names} == {} and len(broken) > 500


def test_a_broken_rule_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    lines = {
        "runtime/loop/x.py": ["import torch", "from ditedge.calibration import tune", "from ...export import x", "import runtime.loop"],
        "calibration/x.py": ["import torch", "from ditedge import export", "import onnx"],
        "tests/runtime/x.py": ["import diffusers", "import numpy"],
    }  # fmt: skip
    for name, text in lines.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("\n".join(text))
    found = {name: list(broken_rules(tmp_path / name)) for name in lines}
    assert [len(each) for each in found.values()] == [6, 2, 1], found


# A room imports only rooms before it; files beside the rooms come first, or, where they are listed, in their place.
ROOMS = (
    *(
        "runtime.samplers",
        "runtime.bundle",
        "runtime.plans",
        "runtime.loop",
        "runtime.bench",
        "runtime.pictures",
        "runtime.sets",
        "runtime.serving",
    ),
    *("runtime.describe", "runtime.inspection", "runtime.doctor", "runtime.signing", "runtime"),
    *("calibration.pool", "calibration.graph", "calibration.statistics", "calibration.formats", "calibration.quality"),
    *("calibration.layers", "calibration.options", "calibration.plan", "calibration.kept", "calibration.derived"),
    "calibration.encoder",
    *("calibration.convert", "calibration.quantize", "calibration.every", "calibration.tune", "calibration"),
    *("export.networks", "export.sources", "export.options", "export.graphs", "export.truth", "export.schedulers"),
    *(
        "export.manifests",
        "export.pictures",
        "export.prompt_exporter",
        "export.exporter",
        "export.with_decoder",
        "export",
    ),
)
MODULES = {
    ".".join(path.with_suffix("").relative_to(ROOT).parts).removesuffix(".__init__"): path
    for path in FILES
    if path.relative_to(ROOT).parts[0] in FOLDERS
}
OURS = {
    module: {
        name.removeprefix("ditedge.")
        for name in imports(path)
        if name.removeprefix("ditedge.") in MODULES.keys() - {module}
    }
    for module, path in MODULES.items()
}


def place(module: str) -> int:
    """Of a module's room in ROOMS; the ground, files that no room is listed for, is -1."""
    rooms = [room for room in ROOMS if module == room or (room.count(".") and module.startswith(f"{room}."))]
    return ROOMS.index(max(rooms, key=len)) if rooms else -1


def test_a_room_imports_only_rooms_before_it() -> None:
    for module, found in OURS.items():
        wrong = [name for name in found if place(name) > place(module) and name not in FOLDERS]
        assert not wrong, f"{module} imports {wrong}, which come later in ROOMS"


def test_no_import_goes_in_a_circle() -> None:
    left = {module: set(found) for module, found in OURS.items()}
    while free := [module for module, found in left.items() if not found & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"in a circle, or importing one: {sorted(left)}"


def test_no_file_is_named_like_a_library() -> None:
    for path in FILES:
        assert path.stem not in ("onnx", "onnxruntime", "torch", "tensorrt", "numpy", "click"), path
