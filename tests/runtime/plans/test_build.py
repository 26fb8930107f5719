"""Plans without a GPU: TensorRT-RTX builds ahead of time, so parsing, typing, profiles and records are real here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from ditedge.cli import main
from ditedge.runtime import open_bundle
from ditedge.runtime.errors import Cancelled, RequestError
from ditedge.runtime.files import sha256_of_file
from ditedge.runtime.plans import library as tensorrt_library
from ditedge.runtime.plans.build import build_bundle, engine_folder
from ditedge.runtime.plans.layers import LAYERS_NAME, read_layers
from ditedge.runtime.plans.lint import lint_plan
from ditedge.runtime.plans.options import BuildOptions
from ditedge.runtime.plans.profile import graph_profile, sizes_of
from ditedge.runtime.plans.record import RECORD_NAME, read_build_record
from ditedge.runtime.signing import new_key_pair, sign_bundle
from tests.conftest import ROOT
from tests.runtime.plans.here import Built, needs_rtx


@needs_rtx
def test_the_record_says_what_was_built(built: Path) -> None:
    bundle = open_bundle(built)
    record = read_build_record(engine_folder(bundle, "tensorrt-rtx") / RECORD_NAME)
    assert record.library == "tensorrt-rtx"
    assert record.library_version == tensorrt_library.load_library("tensorrt-rtx").version
    assert record.compute_capabilities == ["sm86", "sm89", "sm120"]
    assert (record.gpu, record.flags, record.max_batch, record.max_rows) == (None, ["REQUIRE_USER_ALLOCATION"], 3, 5)
    assert record.bundle_sha256 == sha256_of_file(built / "manifest.json")
    assert set(record.plans) == {"conditioner", "step", "decoder"}
    for name, plan in record.plans.items():
        file = engine_folder(bundle, "tensorrt-rtx") / plan.file
        assert plan.plan.sha256 == sha256_of_file(file)
        assert plan.plan.bytes == file.stat().st_size > 10_000
        assert plan.source_sha256 == sha256_of_file(bundle.graph_file(name))
        assert plan.profile == graph_profile(bundle.manifest, name, sizes_of(bundle, 3, 5))
    left = {path.name for path in engine_folder(bundle, "tensorrt-rtx").iterdir()}
    assert left == {"conditioner.plan", "dit.plan", "decoder.plan", RECORD_NAME, LAYERS_NAME}
    assert [path.name for path in (built / "engines").iterdir()] == ["tensorrt-rtx"], "a temporary folder was left"


@needs_rtx
def test_the_layers_of_a_float32_plan_are_listed(built: Path) -> None:
    plan = read_layers(built / "engines" / "tensorrt-rtx" / LAYERS_NAME, "step")
    layers = plan.layers
    assert plan.activation_bytes > 0 and plan.weight_bytes > 0
    depth = open_bundle(built).manifest.model.depth
    nodes = {node for layer in layers for node in layer.onnx}
    assert sum("softmax" in node for node in nodes) == depth
    assert {kind for layer in layers for kind in layer.outputs} <= {"float32", "int64", "int32", "bool"}


@needs_rtx
def test_an_opened_bundle_ignores_its_engines(built: Path) -> None:
    assert open_bundle(built).manifest.graphs  # engines/ is not in the manifest's files


@needs_rtx
def test_force_replaces_and_nothing_else_does(built: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built, tmp_path / "gray"))
    bundle = open_bundle(folder)
    before = (folder / "engines" / "tensorrt-rtx" / RECORD_NAME).read_bytes()
    with pytest.raises(RequestError, match="already exists, use --force"):
        build_bundle(bundle, BuildOptions("tensorrt-rtx"))
    assert (folder / "engines" / "tensorrt-rtx" / RECORD_NAME).read_bytes() == before
    trusted = [new_key_pair(tmp_path / "k.pem")]
    signed = [folder / "manifest.json.sig", folder / "engines" / "tensorrt-rtx" / f"{RECORD_NAME}.sig"]
    assert list(sign_bundle(folder, tmp_path / "k.pem")) == signed
    assert lint_plan(folder / "engines" / "tensorrt-rtx" / "dit.plan", trusted).kind == "plan"
    build_bundle(bundle, BuildOptions("tensorrt-rtx", max_batch=1, force=True))
    assert [path for path in signed if path.exists()] == signed[:1], "new plans are not what was signed"
    assert open_bundle(folder, trusted_keys=trusted)
    record = read_build_record(folder / "engines" / "tensorrt-rtx" / RECORD_NAME)
    assert (record.max_batch, record.max_rows, record.compute_capabilities) == (1, 2, [])
    assert [path.name for path in (folder / "engines").iterdir()] == ["tensorrt-rtx"]


@needs_rtx
def test_progress_rises_to_one_and_names_the_graphs(a_build: Built) -> None:
    told = a_build.told
    percent = [done for _, done, _ in told]
    assert 0 <= min(percent) and 90 < max(percent) <= 100 and {total for *_, total in told} == {100}
    assert {what.split(":")[0] for what, *_ in told} == {f"building {x}" for x in ("conditioner", "step", "decoder")}
    step = [done for what, done, _ in told if what.startswith("building step")]
    assert step[-1] > step[0]


@needs_rtx
def test_cancel_stops_and_leaves_nothing(gray_bundle: Path) -> None:
    cancel = threading.Event()
    with pytest.raises(Cancelled):
        build_bundle(
            open_bundle(gray_bundle),
            BuildOptions("tensorrt-rtx"),
            lambda what, done, total: cancel.set() if what.startswith("building step") and done > 40 else None,
            cancel,
        )
    assert list((gray_bundle / "engines").iterdir()) == []


@needs_rtx
def test_ctrl_c_leaves_no_plans(gray_bundle: Path) -> None:
    """SIGINT to the real command, once its temporary folder is there."""
    command = [sys.executable, str(ROOT / "cli.py"), "build", "--engine", str(gray_bundle), "--target", "tensorrt-rtx"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    limit = time.monotonic() + 60
    while not list(gray_bundle.glob("engines/.tensorrt-rtx.*")) and time.monotonic() < limit:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Interrupted: no result was written." in errors
    assert list((gray_bundle / "engines").iterdir()) == []


@needs_rtx
@pytest.mark.slow
def test_options_that_a_build_takes_without_a_gpu(gray_bundle: Path) -> None:
    command = ["build", "--engine", str(gray_bundle), "--target", "tensorrt-rtx", "--max-batch", "1"]
    result = CliRunner().invoke(main, [*command, "--workspace", "64", "--optimization-level", "0"])
    assert result.exit_code == 0, result.output
    assert "dit.plan" in result.stdout and "1 image(s)" in result.stderr


@needs_rtx
@pytest.mark.slow
def test_weight_streaming_is_in_the_record(gray_bundle: Path) -> None:
    record = build_bundle(open_bundle(gray_bundle), BuildOptions("tensorrt-rtx", weight_streaming=8))
    assert (record.flags, record.weight_streaming_mb) == (["WEIGHT_STREAMING"], 8)


@needs_rtx
@pytest.mark.slow
def test_polygraphy_builds_the_same_graph_with_the_recorded_profile(built: Path, tmp_path: Path) -> None:
    """A second opinion on graph and profile: NVIDIA's own tool takes both, without a GPU."""
    pytest.importorskip("polygraphy")
    record = read_build_record(built / "engines" / "tensorrt-rtx" / RECORD_NAME)
    arguments = [
        "convert",
        str(built / "step.onnx"),
        "-o",
        str(tmp_path / "step.plan"),
        "--compute-capabilities",
        "8.6",
    ]
    for flag, which in (("min", "min"), ("opt", "opt"), ("max", "max")):
        shapes = [f"{name}:{getattr(s, which)}".replace(" ", "") for name, s in record.plans["step"].profile.items()]
        arguments += [f"--trt-{flag}-shapes", *shapes]
    environment = {**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1", "POLYGRAPHY_AUTOINSTALL_DEPS": "0"}
    command = [sys.executable, "-c", "from polygraphy.tools import main; raise SystemExit(main())", *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert (tmp_path / "step.plan").stat().st_size > 10_000
