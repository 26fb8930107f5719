"""The README's own code and commands."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from ditedge.cli import main
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_the_python_example_runs(golden_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    bundle = tmp_path / "build" / "demo" / "fashion"
    shutil.copytree(golden_bundle("gray1_cfg", labels=True), bundle)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    with Image.open(tmp_path / "build" / "three.png") as image:
        assert image.size == (3 * 8 + 2 * 2, 8)


def test_the_table_lists_every_command() -> None:
    assert sorted(re.findall(r"^\| `([\w-]+)", README, re.MULTILINE)) == sorted(main.commands)


def test_public_names_are_documented() -> None:
    import ditedge.runtime

    for name in ditedge.runtime.__all__:
        assert name in README, name


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
