"""quality.json and report.html: read back, parsed, nothing from outside, and the pictures are the pictures."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditedge.calibration import CompareRequest, Comparison, Gate, Quality, compare_bundles, read_quality, write_report
from ditedge.calibration.quality.curve import ticks_up_to
from ditedge.calibration.quality.report import check_report_folder, difference, report_html
from ditedge.runtime.errors import RequestError
from ditedge.runtime.files import write_text
from tests.calibration.variants import rounded, variant

VOID = {"meta", "img", "br", "link", "circle", "line", "polyline"}


class Page(HTMLParser):
    """Every element with its attributes; tags must nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def comparison(golden_bundle, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    gray = golden_bundle("gray1_cfg")
    coarse = variant(gray, tmp_path_factory.mktemp("b") / "coarse <b>&", rounded(15))
    request = CompareRequest(count=9, steps=4, speed_rounds=0)
    return compare_bundles(gray, coarse, request).with_gate(Gate(max_drift=1e-9))[0]


def test_json_round_trip(comparison: Comparison, tmp_path: Path) -> None:
    path, _ = write_report(comparison, tmp_path / "deep" / "report")
    assert read_quality(path) == comparison.quality
    data = json.loads(path.read_text())
    assert (data["format"], data["version"]) == ("ditedge-quality", 1)
    for change, match in (({"version": 2}, "version"), ({"extra": 1}, "extra"), ({"drift": None}, "drift")):
        path.write_text(json.dumps(data | change))
        with pytest.raises(RequestError, match=match):
            read_quality(path)
    with pytest.raises(RequestError, match="cannot read"):
        read_quality(tmp_path / "none.json")
    (tmp_path / "file").write_text("")
    for refuse in (write_report, lambda _, folder: check_report_folder(folder)):
        with pytest.raises(RequestError, match="cannot write"):
            refuse(comparison, tmp_path / "file")
    check_report_folder(tmp_path / "not" / "yet")
    assert not (tmp_path / "not").exists()


def test_a_report_is_replaced_whole_and_nothing_else_is(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at the second file leaves both old ones; a folder with more in it, or without a name, is refused."""
    out = tmp_path / "report"
    write_report(comparison, out)
    before = (out / "quality.json").read_bytes()
    renamed = replace(comparison, quality=comparison.quality.model_copy(update={"drift_between_seeds": 0.125}))
    monkeypatch.setattr("ditedge.calibration.quality.report.write_text", full_after(1))
    with pytest.raises(RequestError, match="No space left"):
        write_report(renamed, out)
    monkeypatch.undo()
    assert (out / "quality.json").read_bytes() == before and os.listdir(tmp_path) == ["report"]

    (tmp_path / "link").symlink_to("report")
    write_report(renamed, tmp_path / "link")
    assert read_quality(out / "quality.json").drift_between_seeds == 0.125 and (tmp_path / "link").is_symlink()

    (out / "notes.txt").write_text("mine")
    for refuse in (write_report, lambda _, folder: check_report_folder(folder)):
        with pytest.raises(RequestError, match="it holds notes.txt"):
            refuse(comparison, out)
        with pytest.raises(RequestError, match="with a name"):
            refuse(comparison, Path("."))
    assert (out / "notes.txt").read_text() == "mine"


def full_after(files: int) -> Callable[[Path, str], None]:
    """write_text of a disk that is full after so many files."""
    written: list[Path] = []

    def write(path: Path, text: str) -> None:
        written.append(path)
        if len(written) > files:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_text(path, text)

    return write


def test_schema_covers_every_field(comparison: Comparison) -> None:
    schema = Quality.model_json_schema()
    assert set(comparison.quality.model_dump()) == set(schema["properties"])
    assert schema["additionalProperties"] is False


def test_page_is_whole_and_self_contained(comparison: Comparison) -> None:
    html = report_html(comparison)
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "data", "srcset"):
            assert attributes.get(name, "data:").startswith("data:")  # type: ignore[union-attr]
    assert "url(" not in html and "@import" not in html and "http" not in html
    assert "coarse <b>&" in page.text  # escaped, so it is text and no element
    assert "FAILED" in page.text and "is allowed" in page.text
    assert any(tag == "meta" and "width=device-width" in (a.get("content") or "") for tag, a in page.elements)
    assert "prefers-color-scheme:dark" in html


def test_pictures_are_the_pictures(comparison: Comparison) -> None:
    a, b = comparison.images_a, comparison.images_b
    assert a is not None and b is not None and len(a) == 8
    sources = [attributes["src"] for tag, attributes in Page(report_html(comparison)).elements if tag == "img"]
    for source, images in zip(sources, (a, b, difference(a, b)), strict=True):
        with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as file:
            picture = np.asarray(file)
        small = picture[::16, ::16]  # 8 pixels are shown as 128
        tiles = [small[8 * row : 8 * row + 8, 8 * c : 8 * c + 8] for row in range(2) for c in range(4)]
        np.testing.assert_array_equal(np.stack(tiles), images[..., 0])


def test_curve_has_the_errors(comparison: Comparison) -> None:
    lines = [a for tag, a in Page(report_html(comparison)).elements if tag == "polyline" and a["class"] == "all"]
    points = np.array([[float(v) for v in point.split(",")] for point in (lines[0]["points"] or "").split()])
    errors = np.array([step.relative for step in comparison.quality.steps])
    height = points[:, 1]  # downwards: a straight line of the errors
    slope, offset = np.polyfit(errors, height, 1)
    assert slope < 0 and np.abs(slope * errors + offset - height).max() < 0.11  # one decimal is written


def test_difference_is_eight_times_and_clipped() -> None:
    a, b = np.array([10, 0, 200], np.uint8), np.array([12, 255, 200], np.uint8)
    assert difference(a, b).tolist() == [16, 255, 0]


@pytest.mark.parametrize("largest", [1e-7, 0.013, 0.2, 0.26, 1.0, 7.3, 1e4])
def test_ticks_reach_the_largest_value(largest: float) -> None:
    ticks = ticks_up_to(largest)
    assert ticks[0] == 0 and ticks[-1] >= largest * (1 - 1e-6) and 3 <= len(ticks) <= 7
    assert ticks[-2] < largest
    assert ticks_up_to(0.0) == [0.0, 1.0]


def test_a_bundle_without_decoder_has_no_pictures(golden_bundle) -> None:
    latent = golden_bundle("latent4_learned_sigma")
    result = compare_bundles(latent, latent, CompareRequest(count=2, steps=3, speed_rounds=0))
    assert result.images_a is None and result.quality.pixels is None
    assert not [tag for tag, _ in Page(report_html(result)).elements if tag == "img"]
