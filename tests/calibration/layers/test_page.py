"""The command: what it prints, the page that it writes, its exit codes."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from ditedge.calibration.layers.page import HEIGHT, WIDTH, curve, page
from ditedge.calibration.layers.pairing import Point
from ditedge.calibration.layers.record import GraphLayers, Layers, Measured, Side
from ditedge.cli import main
from tests.calibration.layers.conftest import scaled

SVG = "{http://www.w3.org/2000/svg}"


def verify(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, arguments)])


def test_the_command_names_the_layer_and_fails(gray: Path, derived, tmp_path: Path) -> None:
    broken, out = derived("broken", scaled("blocks.0.attn.proj", 1.5)), tmp_path / "layers.html"
    asked = ("--layers", "--engine", broken, "--reference", gray, "--step", 3)
    result = verify(*asked, "--report", out)
    assert result.exit_code == 1, result.output
    assert re.search(
        r"^FAILED: first beyond 0.001: step, blocks.0.attn.proj \(MatMul \w+\): 5.00e-01$", result.output, re.M
    )
    assert re.search(r"^  blocks.0.attn.proj +0.00e\+00 +\d\.\d\de-01 +\d\.\d\de-01 +5.00e-01$", result.output, re.M)
    assert f"wrote {out}" in result.output
    text = out.read_text()
    assert "blocks.0.attn.proj" in text and "http" not in text.replace("http://www.w3.org", ""), "it loads nothing"
    HTMLParser().feed(text)
    passed = verify(*asked, "--tolerance", 0.9, "--json")
    assert passed.exit_code == 0, passed.output
    summary = json.loads(passed.stdout)
    assert summary["passed"] and summary["largest_jump"]["layer"] == "blocks.0.attn.proj"
    assert {"tensor", "op", "layer", "counterpart", "error", "worst", "jump"} <= summary["graphs"]["step"][0].keys()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--step", 3), "--step is for --layers: give both, or neither"),
        (("--report", "a.html"), "--report is for --layers"),
        (("--layers", "--tolerance", 1.5), "--tolerance 1.5 is not a relative error above 0 and below 1"),
        (("--layers",), "give that with --reference"),
        (("--layers", "--reference", "nowhere"), "nowhere does not exist"),
        (("--layers", "--report", "/"), "cannot write /: it is a folder"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(gray: Path, arguments: tuple[Any, ...], complaint: str) -> None:
    result = verify("--engine", gray, *arguments)
    assert result.exit_code == 2 and complaint in result.output, result.output
    assert len(result.output.strip().splitlines()) == 1


def measured(errors: list[float | None]) -> GraphLayers:
    names = [f"t{i}" for i in range(len(errors))]
    return GraphLayers(
        "step",
        [
            Measured(
                Point(name, "MatMul", f"blocks.{i // 4}.<fc>", i % 3 != 1, tuple(names[max(0, i - 1) : i]), name, ""),
                errors[i],
                errors[i],
                "" if errors[i] is not None else "gone",
            )
            for i, name in enumerate(names)
        ],
    )


@pytest.mark.parametrize(
    "errors", [[0.0], [0.0, 0.0], [1e-9, 1e-3, 0.2, 3.0], [1e-4, None, float("inf")], [1e-3] * 200], ids=str
)  # fmt: skip
def test_the_curve_stays_inside_its_picture(errors: list[float | None]) -> None:
    text = curve(measured(errors), 1e-2)
    svg = ElementTree.fromstring(re.search(r"<svg.*</svg>", text).group().replace("<svg", f'<svg xmlns="{SVG[1:-1]}"'))  # type: ignore[union-attr]
    lines = svg.findall(f"{SVG}polyline")
    assert len(lines) == 2
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        assert len(points) == sum(error is not None for i, error in enumerate(errors) if i % 3 != 1)
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    circles = svg.findall(f"{SVG}circle")
    beyond = [circle for circle in circles if circle.attrib["class"] == "beyond"]
    assert len(beyond) == sum(error is not None and error > 1e-2 for error in errors)
    assert all(0 <= float(circle.attrib["cy"]) <= HEIGHT for circle in circles)
    labels = [float(text.attrib["x"]) for text in svg.findall(f"{SVG}text") if text.attrib["text-anchor"] == "middle"]
    assert all(b - a >= 80 for a, b in zip(labels, labels[1:], strict=False)), "labels lie over each other"
    ticks = [text.text for text in svg.findall(f"{SVG}text") if text.attrib["text-anchor"] == "end"]
    largest = max(1e-2, *(error for error in errors if error is not None and error < float("inf")))
    assert float(ticks[-2]) <= largest <= float(ticks[-1]), "the scale ends above what it has to show"


def test_names_out_of_files_are_escaped() -> None:
    side = Side("<b>", "0" * 64)
    found = Layers(side, side, "<cpu>", "step <1>", 1e-2, [measured([1e-3, 0.5, None])], ["<same>"])
    text = page(found)
    assert not re.search(r"<(b>|cpu|same|1>|fc>)", text)
    assert "&lt;fc&gt;" in text and "&lt;same&gt;" in text


def test_jumps_are_over_what_a_tensor_is_computed_from() -> None:
    side = Side("a", "0" * 64)
    found = Layers(side, side, "cpu", "", 1e-2, [measured([0.001, 0.004, 0.003, 0.2, 0.21, float("inf"), 0.1])], [])
    assert [t.jump for t in found.graphs[0].tensors[:3]] == pytest.approx([0.001, 0.003, 0])
    _, first = found.first_beyond or pytest.fail("nothing is beyond")
    assert first.point.tensor == "t3"
    assert [t.jump for t in found.graphs[0].tensors[5:]] == [float("inf"), 0]
