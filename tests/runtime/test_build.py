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
from ditedge.runtime import open_bundle, tensorrt_library
from ditedge.runtime.build import BuildOptions, build_bundle, engine_folder
from ditedge.runtime.build_profile import Sizes, forecast, graph_profile, sizes_of
from ditedge.runtime.build_record import RECORD_NAME, read_build_record
from ditedge.runtime.errors import Cancelled, RequestError
from ditedge.runtime.files import sha256_of_file
from ditedge.runtime.layers import LAYERS_NAME, read_layers

ROOT = Path(__file__).resolve().parents[2]
needs_rtx = pytest.mark.skipif(
    not tensorrt_library.importlib.util.find_spec("tensorrt_rtx"), reason="tensorrt-rtx-cu13 is not installed"
)
has_gpu = tensorrt_library.first_gpu() is not None
without_gpu = pytest.mark.skipif(has_gpu, reason="there is a GPU")


@pytest.fixture(scope="module")
def built(golden_bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest bundle with plans for three architectures."""
    folder = Path(shutil.copytree(golden_bundle("gray1_cfg"), tmp_path_factory.mktemp("built") / "gray"))
    options = BuildOptions("tensorrt-rtx", archs=("sm86", "sm89", "sm120"), max_batch=3, max_rows=5)
    build_bundle(open_bundle(folder), options)
    return folder


@needs_rtx
def test_the_record_says_what_was_built(built: Path) -> None:
    bundle = open_bundle(built)
    record = read_build_record(engine_folder(bundle, "tensorrt-rtx") / RECORD_NAME)
    assert record.library == "tensorrt-rtx"
    assert record.library_version == tensorrt_library.load_library("tensorrt-rtx").version
    assert record.compute_capabilities == ["sm86", "sm89", "sm120"]
    assert (record.gpu, record.flags, record.max_batch, record.max_rows) == (None, [], 3, 5)
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
    build_bundle(bundle, BuildOptions("tensorrt-rtx", max_batch=1, force=True))
    record = read_build_record(folder / "engines" / "tensorrt-rtx" / RECORD_NAME)
    assert (record.max_batch, record.max_rows, record.compute_capabilities) == (1, 2, [])
    assert [path.name for path in (folder / "engines").iterdir()] == ["tensorrt-rtx"]


@needs_rtx
def test_progress_rises_to_one_and_names_the_graphs(gray_bundle: Path) -> None:
    told: list[tuple[float, str]] = []
    build_bundle(open_bundle(gray_bundle), BuildOptions("tensorrt-rtx"), lambda *event: told.append(event))
    fractions = [fraction for fraction, _ in told]
    assert 0 <= min(fractions) and 0.9 < max(fractions) <= 1.0 + 1e-9
    assert {phase.split(":")[0] for _, phase in told} == {"conditioner", "step", "decoder"}
    step = [fraction for fraction, phase in told if phase.startswith("step")]
    assert step[-1] > step[0]


@needs_rtx
def test_cancel_stops_and_leaves_nothing(gray_bundle: Path) -> None:
    cancel = threading.Event()
    with pytest.raises(Cancelled):
        build_bundle(
            open_bundle(gray_bundle),
            BuildOptions("tensorrt-rtx"),
            lambda fraction, phase: cancel.set() if phase.startswith("step") and fraction > 0.4 else None,
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


def test_profiles_cover_every_batch_the_runtime_makes(golden_bundle) -> None:
    """B in 1 .. max; E is B unguided and 2B guided; K has room for third-order UniPC and a preview slot."""
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    model = bundle.manifest.model
    sizes = sizes_of(bundle, 3, None)
    assert sizes.rows == 6  # a label and a label to guide away from, for each of three samples
    assert sizes.slots >= bundle.program(sampler="unipc", order=3, steps=8).slots
    assert sizes.slots >= bundle.program(sampler="unipc", order=2, steps=8).slots + 1
    profile = graph_profile(bundle.manifest, "step", sizes)
    side = model.input_size
    assert profile["state"].min == [1, 1, model.in_channels, side, side]
    assert profile["state"].max == [3, sizes.slots, model.in_channels, side, side]
    assert profile["mix"].max == [3, sizes.slots, sizes.slots + 2]
    assert profile["combine"].max == [3, 6, model.out_channels]
    assert (profile["sample"].min, profile["sample"].max) == ([1], [6])
    assert profile["modulation"].max[0] == 6
    for name, shape in profile.items():
        bounds = zip(shape.min, shape.opt, shape.max, strict=True)
        assert all(least <= typical <= most for least, typical, most in bounds), name
    assert graph_profile(bundle.manifest, "decoder", sizes)["latent"].max[0] == 3
    assert graph_profile(bundle.manifest, "conditioner", sizes)["label"].max == [64]


def test_a_large_decoder_takes_few_images_at_a_time() -> None:
    """As the sampler does: 512 x 512 pixels at a time, whatever the batch."""
    assert Sizes(batch=16, slots=4, rows=32).range("decoder", "B", 512 * 512) == (1, 1, 1)
    assert Sizes(batch=16, slots=4, rows=32).range("decoder", "B", 256 * 256) == (1, 4, 4)
    assert Sizes(batch=16, slots=4, rows=32).range("step", "B", 512 * 512) == (1, 16, 16)


def test_more_slots_when_a_program_has_more(gray_bundle: Path) -> None:
    from ditedge.runtime.programs import write_program

    bundle = open_bundle(gray_bundle)
    program = bundle.program(sampler="lms", order=4, steps=8)
    name = next(iter(bundle.manifest.programs))
    write_program(program, bundle.file(bundle.manifest.programs[name]))
    assert sizes_of(bundle, 1, None).slots == 5


def test_the_forecast_grows_with_the_batch(golden_bundle) -> None:
    manifest = open_bundle(golden_bundle("gray1_cfg")).manifest
    small, large = forecast(manifest, Sizes(1, 4, 2)), forecast(manifest, Sizes(8, 4, 16))
    assert small.weights == large.weights == sum(i.bytes for n, i in manifest.files.items() if n.endswith(".onnx"))
    assert large.activations == 8 * small.activations
    assert small.host > small.weights


REFUSALS = {
    "onnxruntime": (["--target", "onnxruntime"], "there is nothing to build"),
    "unknown arch": (["--target", "tensorrt-rtx", "--arch", "sm87"], "sm75, sm80, sm86, sm89, sm120"),
    "float32 on Turing": (["--target", "tensorrt-rtx", "--arch", "sm75"], "no float32 matrix products on sm75"),
    "timing cache": (["--target", "tensorrt-rtx", "--timing-cache", "x"], "--timing-cache is not for TensorRT-RTX"),
    "hardware": (
        ["--target", "tensorrt-rtx", "--hardware-compatible"],
        "--hardware-compatible is not for TensorRT-RTX",
    ),
    "versions": (["--target", "tensorrt-rtx", "--version-compatible"], "it has no lean runtime"),
    "dla": (["--target", "tensorrt-rtx", "--dla", "0"], "it runs on GPUs only"),
}
NEED_GPU = {
    "refit": (["--target", "tensorrt-rtx", "--refit"], "--refit compiles on the GPU, and there is none here"),
    "strip": (["--target", "tensorrt-rtx", "--strip-weights"], "--strip-weights compiles on the GPU"),
}


def refused(bundle: Path, arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(main, ["build", "--engine", str(bundle), *arguments])
    assert result.exit_code == 2, result.output
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("Error: ") and sentence in message
    assert "Traceback" not in result.output
    assert not list(bundle.glob("engines/*")) + list(bundle.glob("engines/.*"))


@needs_rtx
@pytest.mark.parametrize("case", REFUSALS)
def test_every_refusal_is_a_sentence(gray_bundle: Path, case: str) -> None:
    refused(gray_bundle, *REFUSALS[case])


@needs_rtx
@without_gpu
@pytest.mark.parametrize("case", NEED_GPU)
def test_what_needs_a_gpu_says_so(gray_bundle: Path, case: str) -> None:
    refused(gray_bundle, *NEED_GPU[case])


@pytest.mark.skipif(bool(tensorrt_library.importlib.util.find_spec("tensorrt")), reason="tensorrt is installed")
def test_missing_tensorrt_says_where_it_comes_from(gray_bundle: Path) -> None:
    refused(gray_bundle, ["--target", "tensorrt"], "it comes with JetPack on a Jetson")


def test_a_bundle_with_a_wrong_hash_is_not_built(gray_bundle: Path) -> None:
    (gray_bundle / "step.onnx").write_bytes((gray_bundle / "step.onnx").read_bytes()[:-1] + b"\0")
    refused(gray_bundle, ["--target", "tensorrt-rtx"], "does not match its hash")
