"""The processor's integer kernels by name: ONNX Runtime's sums decide, flags only name what they allow."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
from click.testing import CliRunner

from ditedge.calibration.options import QuantizeOptions
from ditedge.calibration.quantize import quantize_bundle
from ditedge.cli import main
from ditedge.runtime.loop import int8_kernels
from ditedge.runtime.loop.int8_kernels import integer_kernels


@pytest.mark.parametrize(
    ("machine", "saturate", "cpuinfo", "name", "worth"),
    [
        ("x86_64", False, "flags\t\t: fpu avx2 avx512bw avx512_vnni", "AVX-512 VNNI", "2.6x"),
        ("x86_64", False, "flags\t\t: fpu avx2 avx_vnni", "AVX-VNNI", "2.6x"),
        ("x86_64", True, "flags\t\t: fpu avx2", "AVX2 without VNNI", "1.05x"),
        ("x86_64", True, "flags\t\t: fpu avx2 avx512bw", "AVX-512 without VNNI", "1.05x"),
        # an emulator shows its host's flags, and the sums of the processor that it is
        ("x86_64", True, "flags\t\t: fpu avx2 avx512bw avx512_vnni", "AVX2 without VNNI", "1.05x"),
        ("AMD64", False, None, "amd64, instructions unknown", "ditedge compare"),
        ("aarch64", False, "Features\t: fp asimd asimddp", "dotprod", "ditedge compare"),
        ("aarch64", False, "Features\t: fp asimd asimddp i8mm", "i8mm", "ditedge compare"),
        ("arm64", False, None, "arm64, instructions unknown", "ditedge compare"),
    ],
)
def test_kernels_and_what_they_are_worth(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    machine: str,
    saturate: bool,
    cpuinfo: str | None,
    name: str,
    worth: str,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(int8_kernels, "integer_sums_saturate", lambda: saturate)
    monkeypatch.setattr(int8_kernels, "CPUINFO", tmp_path / "cpuinfo")
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{cpuinfo}\n\nprocessor\t: 1\n")
    found = integer_kernels()
    assert found.name == name and worth in found.worth


def test_doctor_and_inspect_say_them(golden_bundle, tmp_path: Path) -> None:
    quantize_bundle(golden_bundle("gray1_cfg"), tmp_path / "int8", QuantizeOptions())
    here = integer_kernels()
    run = CliRunner()
    findings = json.loads(run.invoke(main, ["doctor", "--json"]).stdout)
    (line,) = [finding for finding in findings if finding["name"] == "int8 kernels"]
    assert line["found"] == here.name and here.worth in line["purpose"]
    described = json.loads(run.invoke(main, ["inspect", str(tmp_path / "int8"), "--json"]).stdout)
    assert described["int8_here"] == {"kernels": here.name, "worth": here.worth}
    assert described["quantization"]["precision"] == "int8"
    described = json.loads(run.invoke(main, ["inspect", str(golden_bundle("gray1_cfg")), "--json"]).stdout)
    assert "int8_here" not in described and described["quantization"] is None
