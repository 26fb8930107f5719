"""The documents are measured again by one command: sections are replaced, all else stays."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from bench import publish
from bench.publish import MARKS, Section, replaced, sections, without_places
from tests.conftest import BUNDLES, ROOT


def test_a_section_is_replaced_and_nothing_else() -> None:
    page = "a\n<!-- x -->\nold\n<!-- end x -->\nb \\1\n"
    assert replaced(page, "x", "new \\1") == "a\n<!-- x -->\nnew \\1\n<!-- end x -->\nb \\1\n"
    with pytest.raises(ValueError, match="no section <!-- y -->"):
        replaced(page, "y", "new")


def test_the_pages_have_a_place_for_every_section() -> None:
    for name, section in sections(1).items():
        page = (ROOT / "docs" / section.page).read_text()
        assert all(page.count(mark.format(name)) == 1 for mark in MARKS), f"{section.page} has no section {name}"
        assert section.command[0] == "-m"


def test_no_folder_of_this_machine_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish.tempfile, "gettempdir", lambda: "/var/tmp")
    assert (
        without_places(f"/var/tmp/x1y/int8/step.onnx: {ROOT}/build/demo/fashion")
        == "int8/step.onnx: build/demo/fashion"
    )


def test_one_is_measured_and_published(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("# Title\n<!-- tiny -->\n<!-- end tiny -->\n")
    command = (
        "-m",
        "ditedge",
        "bench",
        "--engine",
        str(BUNDLES / "gray1_cfg"),
        "--repeats",
        "1",
        "--threads",
        "1",
        "--json",
    )
    assert publish.publish("tiny", Section("page.md", command, ""), tmp_path)
    page, svg = (tmp_path / "page.md").read_text(), (tmp_path / "benchmarks" / "tiny.svg").read_text()
    assert "| gray1_cfg on cpu | ok |" in page and "](benchmarks/tiny.svg)" in page and "bench --engine" in page
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg"') and svg.count("<rect ") == 1
    assert not re.search(r"href|url\(", svg) and json.loads((tmp_path / "benchmarks" / "tiny.json").read_text())["rows"]
    broken = Section("page.md", ("-c", "raise SystemExit(3)"), "")
    assert not publish.publish("tiny", broken, tmp_path) and (tmp_path / "page.md").read_text() == page, sys.executable


@pytest.mark.parametrize(
    ("tool", "option"), [("bench.peers", "--json"), ("bench.peers", "--report"), ("bench.roofline", "--json")]
)
def test_what_cannot_be_written_is_told_before_anything_is_measured(
    tool: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = importlib.import_module(f"{tool}.__main__")
    monkeypatch.setattr(main, "compare" if tool == "bench.peers" else "measure", lambda *_: pytest.fail("measured"))
    arguments = ["--engine", str(BUNDLES / "gray1_cfg"), option, str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [tool, *arguments, *(["--ckpt", "x"] if tool == "bench.peers" else [])])
    with pytest.raises(SystemExit, match=re.escape(f"cannot write {tmp_path}: it is a folder")):
        main.main()
