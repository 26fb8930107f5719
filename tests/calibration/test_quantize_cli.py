"""`ditedge quantize`: what it writes, what it refuses in one line, and that Ctrl-C leaves nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from ditedge.calibration import read_quality
from ditedge.cli import main
from ditedge.runtime import open_bundle
from ditedge.runtime.errors import BundleError
from ditedge.runtime.signing import new_key_pair, sign_bundle
from tests.conftest import ROOT


def ditedge(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def test_quantised_bundle_runs_verifies_and_is_described(golden_bundle, tmp_path: Path) -> None:
    out = tmp_path / "int8"
    result = ditedge("quantize", "--engine", golden_bundle("gray1_cfg"), "--out", out, "--keep-layer", "attn.proj")
    assert result.exit_code == 0, result.output
    assert "in float32: " in result.output and "blocks.1.attn.proj" in result.output
    assert ditedge("verify", "--engine", out).exit_code == 0
    assert ditedge("run", "--engine", out, "--count", 2, "--steps", 2, "-o", tmp_path / "two.png").exit_code == 0
    described = json.loads((out / "manifest.json").read_text())["quantization"]
    assert described["precision"] == "int8" and described["activations"] == "per-token"


def test_the_report_is_in_the_bundle_and_the_gate_keeps_a_worse_one_out(golden_bundle, tmp_path: Path) -> None:
    source, out = golden_bundle("gray1_cfg"), tmp_path / "int8"
    settings = ("quantize", "--engine", source, "--out", out, "--count", 3, "--steps", 3)
    assert ditedge(*settings, "--max-drift", 0.5, "--max-size", 200).exit_code == 0
    bundle = open_bundle(out)  # hashes checked: the report's, too
    quality = read_quality(out / "quality" / "quality.json")
    assert "quality/report.html" in bundle.manifest.files
    assert quality.settings.count == 3 and 0 < (quality.drift.relative or 0) < 0.5 and quality.b.name == "int8"
    before = (out / "manifest.json").read_bytes()
    failed = ditedge(*settings, "--max-drift", 1e-6, "--force")
    assert failed.exit_code == 1 and "relative drift of the latents is" in failed.output, failed.output
    assert (out / "manifest.json").read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["int8"]


@pytest.mark.parametrize(
    "arguments,sentence",
    [
        (("--precision", "fp8", "--form", "tensorrt", "--arch", "sm86"), "sm86 has no FP8 arithmetic"),
        (("--precision", "fp8", "--arch", "orin"), "is not a GPU architecture"),
        (("--budget", "0.02"), "write drift=X"),
        (("--statistics", ROOT / "README.md", "--form", "tensorrt"), "README.md exists and holds no statistics"),
        (("--budget", "drift=0.02", "--keep", "2"), "give one of them"),
        (("--keep-layer", "blocks.9"), "no such layer"),
        (("--smoothing", "2"), "not between 0 and 1"),
        (("--naive", "--precision", "fp8"), "plain static int8"),
        (("--budget", "drift=x"), "write drift=X"),
        (("--program", "none-such"), "no program 'none-such'"),
        (("--program", "ddim-10", "--steps", "4"), "is ready-made: leave --sampler and --steps out"),
        (("--max-accuracy-loss", "1"), "--features"),
        (("--count", "0", "--max-drift", "0.1"), "--count 0 measures no quality"),
    ],
)
def test_refusals_are_one_line(golden_bundle, tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    readme = (ROOT / "README.md").read_bytes()
    result = ditedge("quantize", "--engine", golden_bundle("gray1_cfg"), "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2 and sentence in result.output, result.output
    assert len(result.output.strip().splitlines()[-1]) > 20 and "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == [] and (ROOT / "README.md").read_bytes() == readme
    assert "measuring layers" not in result.output


def test_interrupted_leaves_the_statistics_alone(golden_bundle, tmp_path: Path) -> None:
    """Ctrl-C once they are collected: no bundle and no work folder; what was collected stays for the next time."""
    command = ["quantize", "--engine", golden_bundle("gray1_cfg"), "--out", tmp_path / "out", "--form", "tensorrt"]
    command += ["--statistics", tmp_path / "statistics.safetensors", "--samples", "400"]
    command += ["--count", "20000"]  # what comes after takes minutes
    process = subprocess.Popen([sys.executable, ROOT / "cli.py", *map(str, command)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    deadline = time.monotonic() + 100
    while not (tmp_path / "statistics.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "no result was written" in errors, errors
    assert [path.name for path in tmp_path.iterdir()] == ["statistics.safetensors"]


def test_what_is_made_where_signatures_are_asked_for(
    gray_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`quantize` reads a signed bundle; its own result, which nobody signed yet, it checks and measures all the same."""
    key = tmp_path / "release.pem"
    monkeypatch.setenv("DITEDGE_TRUSTED_KEYS", str(new_key_pair(key)))
    sign_bundle(gray_bundle, key)
    out = tmp_path / "int8"
    arguments = ["--out", out, "--count", 2, "--max-drift", 1, "--min-psnr", 0, "--steps", 3]
    result = ditedge("quantize", "--engine", gray_bundle, *arguments)
    assert result.exit_code == 0, result.output
    with pytest.raises(BundleError, match="is not signed"):
        open_bundle(out)
    assert ditedge("sign", "--engine", out, "--key", key).exit_code == 0
    assert open_bundle(out).trusted
