"""The command line of trtexec that makes the same build."""

from __future__ import annotations

import shlex
from pathlib import Path

from click.testing import CliRunner

from ditedge.cli import main
from ditedge.runtime import open_bundle


def test_print_trtexec_prints_the_same_build(gray_bundle: Path) -> None:
    arguments = ["--target", "tensorrt", "--max-batch", "2", "--workspace", "512", "--timing-cache", "t.cache",
                 "--version-compatible", "--hardware-compatible", "--strip-weights", "--weight-streaming", "100",
                 "--dla", "1", "--optimization-level", "4", "--print-trtexec"]  # fmt: skip
    result = CliRunner().invoke(main, ["build", "--engine", str(gray_bundle), *arguments])
    assert result.exit_code == 0, result.output
    commands = [shlex.split(line) for line in result.stdout.splitlines()]
    assert [Path(words[1]).name for words in commands] == ["conditioner.onnx", "step.onnx", "decoder.onnx"]
    step = commands[1]
    assert step[0] == "trtexec" and step[2].endswith("engines/tensorrt/dit.plan")
    model = open_bundle(gray_bundle).manifest.model
    state = "".join(f"x{size}" for size in model.latent_shape)
    (most,) = [word for word in step if word.startswith("--maxShapes=")]
    assert f"state:2x4{state}" in most and "sample:4," in most and f"combine:2x4x{model.out_channels}" in most
    for flag in ("--stronglyTyped", "--memPoolSize=workspace:512M", "--timingCacheFile=t.cache", "--versionCompatible",
                 "--hardwareCompatibilityLevel=ampere+", "--stripWeights", "--allowWeightStreaming", "--useDLACore=1",
                 "--allowGPUFallback", "--builderOptimizationLevel=4", "--profilingVerbosity=detailed"):  # fmt: skip
        assert flag in step
    assert not (gray_bundle / "engines").exists()


def test_print_trtexec_has_one_profile(gray_bundle: Path) -> None:
    arguments = ["--target", "tensorrt", "--one-image", "--print-trtexec"]
    result = CliRunner().invoke(main, ["build", "--engine", str(gray_bundle), *arguments])
    assert result.exit_code == 2 and "leave out --one-image" in result.stderr


def test_print_trtexec_for_rtx_names_the_gpus(gray_bundle: Path) -> None:
    command = [
        "build",
        "--engine",
        str(gray_bundle),
        "--target",
        "tensorrt-rtx",
        "--arch",
        "sm86,SM120",
        "--print-trtexec",
    ]
    lines = CliRunner().invoke(main, command).stdout.splitlines()
    assert len(lines) == 3 and all(line.startswith("tensorrt_rtx ") for line in lines)
    assert all("--computeCapabilities=86,120" in line and "--stronglyTyped" not in line for line in lines)
