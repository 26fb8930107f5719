"""FORMATS: a weight format is one file and one line, and everything that names formats lists the table."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ditedge.calibration.convert import convert_bundle
from ditedge.calibration.formats import FORMATS, formats_of, half_format, quantised_format, summary
from ditedge.calibration.options import FORMS, ConvertOptions, QuantizeOptions
from ditedge.calibration.plan import plan_of
from ditedge.calibration.quality.gate import LIMITS
from ditedge.calibration.quantize import quantize_bundle
from ditedge.cli import main
from ditedge.runtime import open_bundle
from ditedge.runtime.errors import RequestError
from tests.conftest import ROOT


@pytest.mark.parametrize("name", formats_of("quantize"))
def test_a_format_of_few_bits_says_all_that_quantize_asks(name: str) -> None:
    form = quantised_format(name)
    assert set(form.schemes) == set(FORMS) and 1 <= form.bits <= 8
    assert form.limits.keys() <= LIMITS.keys() and {"max_drift", "min_psnr"} <= form.limits.keys()
    for scheme in form.schemes.values():
        assert scheme.activations in ("static", "per-token", "float32") and 0 < scheme.ceiling < 1
        assert not scheme.smoothing or scheme.activations != "float32"


@pytest.mark.parametrize("name", formats_of("convert"))
def test_a_format_of_16_bits_says_all_that_convert_asks(name: str) -> None:
    form = half_format(name)
    assert form.dtype in ("float16", "bfloat16") and 0 < form.tolerance < 1


def test_whoever_names_formats_lists_the_table(gray_bundle: Path, tmp_path: Path) -> None:
    assert {*formats_of("quantize"), *formats_of("convert")} == set(FORMATS)
    for command, page in (("quantize", "quantization.md"), ("convert", "precision.md")):
        text = " ".join(CliRunner().invoke(main, [command, "--help"]).output.split())
        assert f"[{'|'.join(formats_of(command))}]" in text
        written = (ROOT / "docs" / page).read_text().lower()
        assert [name for name in formats_of(command) if name not in written] == []
    assert summary("quantize") == "int8 and fp8: weights and activations; int4: weights alone."
    known = re.escape(", ".join(formats_of("convert")))
    with pytest.raises(RequestError, match=f"'int8': `convert` knows {known}"):
        convert_bundle(gray_bundle, tmp_path / "x", ConvertOptions("int8"))
    with pytest.raises(RequestError, match="'nf4': `quantize` knows int8, fp8, int4"):
        quantize_bundle(gray_bundle, tmp_path / "x", QuantizeOptions("nf4"))
    with pytest.raises(RequestError, match="'openvino': this precision is written for onnxruntime, tensorrt"):
        quantize_bundle(gray_bundle, tmp_path / "x", QuantizeOptions(form="openvino"))


def test_the_table_needs_no_onnx() -> None:
    """A device has none, and `quantize --help` lists the formats there, too."""
    code = (
        "import sys; sys.modules |= dict.fromkeys(('onnx', 'onnx_ir', 'onnxruntime', 'ml_dtypes', 'torch'));"
        "from ditedge.calibration.options import ConvertOptions, QuantizeOptions; print(QuantizeOptions().precision)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "int8\n", result.stderr


def test_a_plan_takes_the_defaults_of_the_format(gray_bundle: Path) -> None:
    bundle = open_bundle(gray_bundle)
    static = plan_of(bundle, QuantizeOptions(form="tensorrt"))
    assert (static.smoothing, static.needs_statistics) == (0.5, True)
    assert plan_of(bundle, QuantizeOptions(form="tensorrt", smoothing=0.0)).smoothing == 0
    assert not plan_of(bundle, QuantizeOptions()).needs_statistics
    assert plan_of(bundle, QuantizeOptions(smoothing=0.3)).needs_statistics
    assert plan_of(bundle, QuantizeOptions(naive=True)).scheme.weights == "per-tensor"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (QuantizeOptions("int4", smoothing=0.5), "--smoothing is for activations, which int4 does not round"),
        (QuantizeOptions("int4", naive=True), "--naive is plain static int8"),
        (QuantizeOptions(naive=True, keep=("fc2",)), "--naive is plain static int8"),
        (QuantizeOptions("fp8", arch="sm86"), "sm86 has no FP8 arithmetic, which begins with sm89; use int8"),
        (QuantizeOptions(arch="gtx"), "not a GPU architecture"),
        (QuantizeOptions(keep_count=1, budget="drift=0.1"), "give one of them"),
        (QuantizeOptions(smoothing=1.5), "not between 0 and 1"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    gray_bundle: Path, options: QuantizeOptions, complaint: str
) -> None:
    with pytest.raises(RequestError, match=complaint):
        plan_of(open_bundle(gray_bundle), options)
