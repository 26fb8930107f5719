"""A weight format, and a quality metric, are one file and one line: the pages' own, put into a copy of the package."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.growing import add_line, blocks, copied_package


def test_a_weight_format(golden_bundle, tmp_path: Path) -> None:
    (copy, ditedge), (code, line) = copied_package(tmp_path), blocks("adding-a-format.md")
    formats = copy / "calibration" / "formats"
    (formats / "w8.py").write_text(code)
    add_line(formats / "__init__.py", line)
    source, forms = golden_bundle("gray1_cfg"), ("onnxruntime", "tensorrt")
    few = ["--count", 2, "--steps", 3, "--sampler", "ddim"]
    said, *_ = ditedge(
        ["quantize", "--help"],
        *(["quantize", "--engine", source, "--precision", "w8", "--form", form, "--out", form, *few] for form in forms),
        *(["verify", "--engine", form] for form in forms),
        ["convert", "--engine", "tensorrt", "--precision", "bf16", "--out", "low"],
    )
    assert "[int8|fp8|int4|w8]" in said and "int4 and w8: weights alone." in said
    for form in forms:
        out = tmp_path / form
        manifest = json.loads((out / "manifest.json").read_text())
        assert (manifest["quantization"]["precision"], manifest["quantization"]["calibration"]) == ("w8", None)
        limits = {
            gate["name"]: gate["limit"] for gate in json.loads((out / "quality/quality.json").read_text())["gates"]
        }
        assert limits == {"finite images": 0, "drift": 0.1, "psnr": 26}
    assert (tmp_path / "low" / "manifest.json").is_file()


def test_a_metric(golden_bundle, tmp_path: Path) -> None:
    (copy, ditedge), (code, line) = copied_package(tmp_path), blocks("adding-a-metric.md")
    metrics = copy / "calibration" / "quality" / "metrics"
    (metrics / "contrast.py").write_text(code)
    add_line(metrics / "__init__.py", line, ("from . import decoding", "from . import contrast, decoding"))
    source = golden_bundle("gray1_cfg")
    *helps, said = ditedge(
        ["compare", "--help"],
        ["quantize", "--help"],
        ["compare", "--engine", source, "--against", source, "--count", 2, "--steps", 3, "--speed-rounds", 0,
         "--max-contrast-loss", 1, "-o", "report"],
    )  # fmt: skip
    assert all("--max-contrast-loss FLOAT Gate: loss of contrast, percent." in text for text in helps)
    assert re.search(r"contrast (\d+\.\d) \1", said)
    quality = json.loads((tmp_path / "report" / "quality.json").read_text())
    assert quality["contrast"]["a"] == quality["contrast"]["b"] > 0
    assert quality["gates"][-1] | {"sentence": ""} == {
        "name": "contrast loss", "limit": 1.0, "measured": 0.0, "passed": True, "sentence": "",
    }  # fmt: skip
    assert "loss of contrast is 0 %, at most 1 %" in (tmp_path / "report" / "report.html").read_text()
