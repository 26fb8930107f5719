"""`--json`: the standard output is one JSON document and nothing else, whatever libraries and child processes print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ditedge.cli import main
from ditedge.runtime.bundle.manifest import MANIFEST_NAME
from ditedge.runtime.files import sha256_of_file
from tests.conftest import ROOT

QUICKLY = ("--count", "2", "--steps", "2")
NOISY = """if True:
    import os, subprocess, sys
    import ditedge.runtime.describe as describe, ditedge.runtime.doctor as doctor, ditedge.terminal as terminal
    from ditedge.__main__ import main
    def noisy(function):
        def call(*arguments):
            os.write(1, b"native noise\\n")
            subprocess.run(["echo", "noise of a child"])
            return function(*arguments)
        return call
    doctor.examine, describe.describe_bundle = noisy(doctor.examine), noisy(describe.describe_bundle)
    terminal.progress = noisy(terminal.progress)
    main()
"""


def document(*arguments: object) -> Any:
    """What the command prints, as the JSON that it must be; descriptor 1 is written to as a library in C does it."""
    command = [sys.executable, "-c", NOISY, *map(str, arguments), "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "native noise\nnoise of a child\n" in result.stderr
    return json.loads(result.stdout)


def hash_of(bundle: Path) -> str:
    return sha256_of_file(bundle / MANIFEST_NAME)


def test_what_is_found(golden_bundle) -> None:
    assert {finding["name"] for finding in document("doctor")} >= {"onnxruntime", "torch"}
    assert document("inspect", golden_bundle("gray1_cfg"))["kind"] == "bundle"


def test_what_makes_a_bundle_says_which(golden_bundle, tmp_path: Path) -> None:
    """And where its quality report is."""
    made = document("quantize", *QUICKLY, "--engine", golden_bundle("gray1_cfg"), "--out", tmp_path / "int8")
    assert made["bundle"] == str(tmp_path / "int8") and made["written"] == [made["bundle"]]
    assert made["quantization"]["precision"] == "int8" and made["bundle_sha256"] == hash_of(tmp_path / "int8")
    assert json.loads(Path(made["quality"]).read_text())["settings"]["count"] == 2


def test_a_bundle_that_loses_too_much_says_by_which_limits(golden_bundle, tmp_path: Path) -> None:
    paths = ["--engine", str(golden_bundle("gray1_cfg")), "--out", str(tmp_path / "int8")]
    result = CliRunner().invoke(main, ["quantize", *QUICKLY, *paths, "--max-drift", "1e-9", "--json"])
    failed = json.loads(result.stdout)
    assert result.exit_code == 1 and [entry["name"] for entry in failed["failed"]] == ["drift"]
    assert failed["written"] == [] and "--max-drift" in result.stderr


def test_a_decoder_that_was_added(golden_bundle, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    diffusers.AutoencoderTiny(decoder_block_out_channels=(8, 8), num_decoder_blocks=(1, 1)).save_pretrained(
        tmp_path / "vae"
    )
    latent = golden_bundle("latent4_learned_sigma")
    made = document("add-decoder", "--engine", latent, "--vae", tmp_path / "vae", "--out", tmp_path / "b")
    assert made["bundle"] == str(tmp_path / "b") and made["written"] == [made["bundle"]]
    assert made["bundle_sha256"] == hash_of(tmp_path / "b") and "VAE's weights: vae/" in made["notes"][0]


def test_plans_that_were_built(gray_bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    made = document("build", "--engine", gray_bundle, "--target", "tensorrt-rtx", "--arch", "sm86")
    assert made["build"]["compute_capabilities"] == ["sm86"] and made["bundle"] == str(gray_bundle)
    assert len(made["written"]) == 3 and all(Path(file).is_file() for file in made["written"])
