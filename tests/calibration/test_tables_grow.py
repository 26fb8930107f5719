"""A weight format, and a quality metric, are one file and one line: the pages' own, put into a copy of the package."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

IN_THE_COPY = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
sys.path.insert(0, {copy!r})
import ditedge
assert ditedge.__file__.startswith({copy!r}), ditedge.__file__
from ditedge.cli import main
main(sys.argv[1:])
"""


def blocks(page: str) -> list[str]:
    """The page's code: a file, and a line of a table."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


@pytest.fixture
def ditedge(tmp_path: Path):
    """ditedge(arguments ...) -> what the command in the copy says; `ditedge.copy` is its folder."""
    copy = tmp_path / "copy"
    for folder in ("ditedge", "runtime", "calibration", "export"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("cpp", "__pycache__"))
    shutil.copy(ROOT / "cli.py", copy)

    def run(*arguments: object) -> str:
        command = [sys.executable, "-c", IN_THE_COPY.format(copy=str(copy)), *map(str, arguments)]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return " ".join(result.stdout.split())

    run.copy = copy  # type: ignore[attr-defined]
    return run


def add_line(table: Path, line: str, *more: tuple[str, str]) -> None:
    """At the end of the one dictionary of the file."""
    text = table.read_text()
    for old, new in (("\n}\n", f"\n{line}}}\n"), *more):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    table.write_text(text)


def test_a_weight_format(ditedge, golden_bundle, tmp_path: Path) -> None:
    code, line = blocks("adding-a-format.md")
    formats = ditedge.copy / "calibration" / "formats"
    (formats / "w8.py").write_text(code)
    add_line(formats / "__init__.py", line)
    said = ditedge("quantize", "--help")
    assert "[int8|fp8|int4|w8]" in said and "int4 and w8: weights alone." in said
    source = golden_bundle("gray1_cfg")
    for form in ("onnxruntime", "tensorrt"):
        out = tmp_path / form
        ditedge("quantize", "--engine", source, "--precision", "w8", "--form", form, "--out", out,
                "--count", 2, "--steps", 3, "--sampler", "ddim")  # fmt: skip
        manifest = json.loads((out / "manifest.json").read_text())
        assert (manifest["quantization"]["precision"], manifest["quantization"]["calibration"]) == ("w8", None)
        limits = {
            gate["name"]: gate["limit"] for gate in json.loads((out / "quality/quality.json").read_text())["gates"]
        }
        assert limits == {"finite images": 0, "drift": 0.1, "psnr": 26}
        ditedge("verify", "--engine", out)
    ditedge("convert", "--engine", tmp_path / "tensorrt", "--precision", "bf16", "--out", tmp_path / "low")


def test_a_metric(ditedge, golden_bundle, tmp_path: Path) -> None:
    code, line = blocks("adding-a-metric.md")
    metrics = ditedge.copy / "calibration" / "quality" / "metrics"
    (metrics / "contrast.py").write_text(code)
    add_line(metrics / "__init__.py", line, ("from . import disk", "from . import contrast, disk"))
    for command in ("compare", "quantize"):
        assert "--max-contrast-loss FLOAT Gate: loss of contrast, percent." in ditedge(command, "--help")
    source = golden_bundle("gray1_cfg")
    said = ditedge("compare", "--engine", source, "--against", source, "--count", 2, "--steps", 3, "--speed-rounds", 0,
                   "--max-contrast-loss", 1, "-o", tmp_path / "report")  # fmt: skip
    assert re.search(r"contrast (\d+\.\d) \1", said)
    quality = json.loads((tmp_path / "report" / "quality.json").read_text())
    assert quality["contrast"]["a"] == quality["contrast"]["b"] > 0
    assert quality["gates"][-1] | {"sentence": ""} == {
        "name": "contrast loss", "limit": 1.0, "measured": 0.0, "passed": True, "sentence": "",
    }  # fmt: skip
    assert "loss of contrast is 0 %, at most 1 %" in (tmp_path / "report" / "report.html").read_text()
