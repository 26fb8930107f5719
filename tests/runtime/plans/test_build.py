"""Plans without a GPU: TensorRT-RTX builds ahead of time, so parsing, typing, profiles and records are real here."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from ditedge.cli import main
from ditedge.runtime import open_bundle
from ditedge.runtime.errors import Cancelled, DitedgeError, EngineError, RequestError
from ditedge.runtime.files import sha256_of_file
from ditedge.runtime.plans import library as tensorrt_library
from ditedge.runtime.plans.build import build_bundle, engine_folder
from ditedge.runtime.plans.layers import LAYERS_NAME, read_layers
from ditedge.runtime.plans.lint import lint_plan
from ditedge.runtime.plans.options import BuildOptions
from ditedge.runtime.plans.profile import Sizes, forecast, graph_profile, sizes_of
from ditedge.runtime.plans.record import RECORD_NAME, read_build_record
from ditedge.runtime.signing import new_key_pair, sign_bundle
from tests.conftest import ROOT

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
def test_progress_rises_to_one_and_names_the_graphs(gray_bundle: Path) -> None:
    told: list[tuple[str, int, int]] = []
    build_bundle(open_bundle(gray_bundle), BuildOptions("tensorrt-rtx"), lambda *event: told.append(event))
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
    from ditedge.runtime.samplers.program import write_program

    manifest = json.loads((gray_bundle / "manifest.json").read_text())
    name = next(iter(manifest["programs"].values()))
    write_program(open_bundle(gray_bundle).program(sampler="lms", order=4, steps=8), gray_bundle / name)
    size = (gray_bundle / name).stat().st_size
    manifest["files"][name] = {"sha256": sha256_of_file(gray_bundle / name), "bytes": size}
    (gray_bundle / "manifest.json").write_text(json.dumps(manifest))
    assert sizes_of(open_bundle(gray_bundle), 1, None).slots == 5


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


def replace_decoder(
    bundle: Path, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], opset: int = 20
) -> None:
    """Another decoder graph, whose `nodes` lead from "latent" to "pixels", with its hash in the manifest."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    types = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}
    latent, image = (
        helper.make_tensor_value_info(info["name"], types[info["dtype"]], info["shape"])
        for side in ("inputs", "outputs")
        for info in manifest["graphs"]["decoder"][side]
    )
    last = [
        helper.make_node("Transpose", ["pixels"], ["channels_last"], perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["channels_last"], ["image"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph([*nodes, *last], "decoder", [latent], [image], constants)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("mine", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), bundle / "decoder.onnx")
    file = bundle / "decoder.onnx"
    manifest["files"]["decoder.onnx"] = {"sha256": sha256_of_file(file), "bytes": file.stat().st_size}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@needs_rtx
def test_fp8_on_ampere_is_refused_in_words(gray_bundle: Path) -> None:
    side = open_bundle(gray_bundle).manifest.model.input_size
    weight = numpy_helper.from_array(np.eye(side, dtype=np.float32), "w")
    scale = numpy_helper.from_array(np.float32(0.01), "s")
    zero = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0.0])
    nodes = []
    for name in ("latent", "w"):
        nodes.append(helper.make_node("QuantizeLinear", [name, "s", "z"], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "s", "z"], [f"{name}_dq"]))
    nodes.append(helper.make_node("MatMul", ["latent_dq", "w_dq"], ["pixels"]))
    replace_decoder(gray_bundle, nodes, [weight, scale, zero])
    refused(gray_bundle, ["--target", "tensorrt-rtx", "--arch", "sm86"], "fp8_e4m3 numbers, which sm86 cannot compute")


@needs_rtx
def test_an_operator_that_tensorrt_lacks_is_named(gray_bundle: Path) -> None:
    replace_decoder(gray_bundle, [helper.make_node("Frobnicate", ["latent"], ["pixels"], "odd", domain="mine")], [])
    refused(gray_bundle, ["--target", "tensorrt-rtx"], "refuses operator Frobnicate (node odd) of decoder.onnx")


@needs_rtx
def test_asymmetric_quantisation_is_refused_in_words(gray_bundle: Path) -> None:
    scale = numpy_helper.from_array(np.float32(0.01), "s")
    zero = numpy_helper.from_array(np.array(3, np.int8), "z")
    nodes = [
        helper.make_node("QuantizeLinear", ["latent", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["pixels"]),
    ]
    replace_decoder(gray_bundle, nodes, [scale, zero])
    refused(gray_bundle, ["--target", "tensorrt-rtx"], "quantise again with zero points of 0")


@needs_rtx
@pytest.mark.parametrize("arguments", [["--workspace", "64"], ["--optimization-level", "0"]])
def test_options_that_a_build_takes_without_a_gpu(gray_bundle: Path, arguments: list[str]) -> None:
    command = ["build", "--engine", str(gray_bundle), "--target", "tensorrt-rtx", "--max-batch", "1", *arguments]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "dit.plan" in result.stdout and "1 image(s)" in result.stderr


@needs_rtx
def test_weight_streaming_is_in_the_record(gray_bundle: Path) -> None:
    record = build_bundle(open_bundle(gray_bundle), BuildOptions("tensorrt-rtx", weight_streaming=8))
    assert (record.flags, record.weight_streaming_mb) == (["WEIGHT_STREAMING"], 8)


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


@needs_rtx
def test_inspecting_a_plan_needs_no_gpu(built: Path) -> None:
    plan = built / "engines" / "tensorrt-rtx" / "dit.plan"
    result = CliRunner().invoke(main, ["inspect", str(plan), "--json"])
    found = json.loads(result.stdout)
    depth = open_bundle(built).manifest.model.depth
    assert len(found["attention"]) == depth and not any(attention["fused"] for attention in found["attention"])
    assert set(found["gemms"]) == {"float32"} and found["bytes"] == plan.stat().st_size
    assert found["activation_bytes"] > 0
    assert CliRunner().invoke(main, ["inspect", str(plan), "--strict"]).exit_code == 1


@needs_rtx
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "build.json").unlink(), "cannot read"),
        (lambda folder: (folder / "dit.plan").write_bytes(b"x"), "does not match its hash"),
        (lambda folder: (folder / "layers.json").write_text("[]"), "no readable list of the layers"),
    ],
)
def test_a_damaged_plan_is_refused(built: Path, tmp_path: Path, damage, sentence: str) -> None:
    folder = Path(shutil.copytree(built / "engines" / "tensorrt-rtx", tmp_path / "plans"))
    damage(folder)
    result = CliRunner().invoke(main, ["inspect", str(folder / "dit.plan")])
    assert result.exit_code == 2 and sentence in result.stderr


@needs_rtx
@without_gpu
def test_a_plan_without_its_list_needs_a_gpu(built: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built / "engines" / "tensorrt-rtx", tmp_path / "plans"))
    (folder / LAYERS_NAME).unlink()
    result = CliRunner().invoke(main, ["inspect", str(folder / "dit.plan")])
    assert result.exit_code == 2 and "needs a GPU" in result.stderr


@needs_rtx
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


class FakeLibrary:
    """Stands for a version of the library: only what `Library` reads."""

    def __init__(self, version: str, **enums: object) -> None:
        self.__version__ = version
        self.__dict__.update(enums)


@pytest.mark.parametrize(
    ("target", "version", "sentence"),
    [
        ("tensorrt", "8.6.1", "TensorRT 8.6.1 is too old: ditedge needs 10.3 or later"),
        ("tensorrt", "10.2.0.19", "TensorRT 10.2.0.19 is too old"),
        ("tensorrt-rtx", "1.0.0", "TensorRT-RTX 1.0.0 is too old"),
    ],
)
def test_old_libraries_are_refused(monkeypatch, target: str, version: str, sentence: str) -> None:
    monkeypatch.setattr(tensorrt_library.importlib, "import_module", lambda _: FakeLibrary(version))
    with pytest.raises(EngineError, match=sentence):
        tensorrt_library.load_library(target)


@pytest.mark.parametrize("version", ["10.3.0.26", "10.14.1.48", "11.4.0.1"])
def test_versions_from_jetpack_6_to_the_newest_are_taken(monkeypatch, version: str) -> None:
    monkeypatch.setattr(tensorrt_library.importlib, "import_module", lambda _: FakeLibrary(version))
    library = tensorrt_library.load_library("tensorrt")
    assert (library.version, library.major) == (version, int(version.split(".")[0]))


def test_a_flag_that_a_version_lacks_is_refused_by_name() -> None:
    library = tensorrt_library.Library("tensorrt", FakeLibrary("11.4.0.1", BuilderFlag=object()), "11.4.0.1")
    with pytest.raises(EngineError, match=r"TensorRT 11.4.0.1 has no BuilderFlag.STRIP_PLAN"):
        library.member("BuilderFlag", "STRIP_PLAN")


def test_a_library_without_its_shared_objects_is_a_sentence(monkeypatch) -> None:
    def broken(_: str) -> object:
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(tensorrt_library.importlib, "import_module", broken)
    with pytest.raises(EngineError, match="installed but does not load .libnvinfer.so.10"):
        tensorrt_library.load_library("tensorrt")


TENSORRT = tensorrt_library.Library("tensorrt", FakeLibrary("10.3.0.26"), "10.3.0.26")
ORIN = tensorrt_library.GpuInfo("Orin", "sm87", 8 << 30)


@pytest.mark.parametrize(
    ("gpu", "options", "sentence"),
    [
        (None, BuildOptions("tensorrt"), "there is no GPU or NVIDIA driver here"),
        (ORIN, BuildOptions("tensorrt", archs=("sm86",)), "--arch is not for TensorRT 10.3.0.26"),
        (ORIN, BuildOptions("tensorrt", max_rows=0), "must be at least 1"),
    ],
)
def test_what_full_tensorrt_refuses(gpu: object, options: BuildOptions, sentence: str) -> None:
    from ditedge.runtime.plans.build import check_options

    with pytest.raises(DitedgeError, match=sentence):
        check_options(TENSORRT, gpu, options)


def test_full_tensorrt_on_a_gpu_takes_every_option() -> None:
    from ditedge.runtime.plans.build import check_options

    everything = BuildOptions("tensorrt", version_compatible=True, hardware_compatible=True, refit=True, dla=0)
    check_options(TENSORRT, ORIN, everything)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("CUDA initialization failure with error: 35", "there is no NVIDIA driver here"),
        ("[checkMacros.cpp] (cudaError 35: CUDA driver version is insufficient)", "no NVIDIA driver"),
        ("IBuilder::build: Error Code 2: OutOfMemory (no further information)", "smaller --max-batch or --workspace"),
        ("Error Code 10: Could not find any implementation for node Foo.", "no kernel for Foo"),
        (
            "IBuilder::x: Error Code 4: API Usage Error (odd thing. In f at /_src/a/b.cpp:12)",
            "API Usage Error (odd thing.",
        ),
    ],
)
def test_messages_of_the_library_become_sentences(message: str, sentence: str) -> None:
    from ditedge.runtime.plans.messages import refusal

    said = refusal("step.onnx", TENSORRT, [message])
    assert said.startswith("TensorRT 10.3.0.26 refuses step.onnx: ") and sentence in said and "_src" not in said


def test_a_timing_cache_is_read_and_written_atomically(tmp_path: Path) -> None:
    """With the calls of the library recorded: TensorRT-RTX times nothing, so no cache can be real here."""
    from ditedge.runtime.plans.graph import _load_timing_cache

    given: list[bytes] = []

    class Config:
        accepts = True

        def create_timing_cache(self, data: bytes) -> bytes:
            given.append(data)
            return data

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            assert ignore_mismatch is False
            return self.accepts

    path = tmp_path / "timing.cache"
    _load_timing_cache(TENSORRT, Config(), path)
    path.write_bytes(b"timings")
    _load_timing_cache(TENSORRT, Config(), path)
    assert given == [b"", b"timings"]
    Config.accepts = False
    with pytest.raises(RequestError, match="is no timing cache of TensorRT 10.3.0.26"):
        _load_timing_cache(TENSORRT, Config(), path)


@needs_rtx
@pytest.mark.slow
def test_export_and_build_in_one_go_of_the_demo_model(tmp_path: Path) -> None:
    model = ROOT / "models" / "fashion-dit"
    arguments = ["--ckpt", f"{model}.safetensors", "--heads", "3", "--classes", f"{model}.classes.txt"]
    command = [
        sys.executable,
        ROOT / "cli.py",
        "export",
        *arguments,
        "--out",
        tmp_path / "f",
        "--target",
        "tensorrt-rtx",
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    record = read_build_record(tmp_path / "f" / "engines" / "tensorrt-rtx" / RECORD_NAME)
    assert set(record.plans) == {"conditioner", "step", "decoder"} and record.compute_capabilities == []


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The float32 bundle of the demo model, or of a DiT-S/2 at 256 with random weights."""
    folder = tmp_path_factory.mktemp("exported")

    def export(name: str) -> Path:
        from ditedge.export import ExportOptions, bundle_from_checkpoint

        if not (folder / name).exists():
            checkpoint, heads = ROOT / "models" / "fashion-dit.safetensors", 3
            if name == "S":
                sys.path.insert(0, str(ROOT / "bench"))
                from export_size import random_checkpoint

                checkpoint, heads = folder / "s.pt", 6
                random_checkpoint("S", 256, 2, checkpoint)
            bundle_from_checkpoint(checkpoint, folder / name, ExportOptions(heads=heads))
        return folder / name

    return export


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "fp16", "bf16"])
@pytest.mark.parametrize(("name", "blocks", "heads", "tokens"), [("demo", 6, 3, 64), ("S", 12, 6, 256)])
def test_models_build_for_three_gpus(
    exported: Callable[[str], Path], tmp_path: Path, name: str, precision: str, blocks: int, heads: int, tokens: int
) -> None:
    """The very graphs that were verified with ONNX Runtime; attention is one kernel in 16 bit, and never in float32."""
    from ditedge.calibration.convert import convert_bundle
    from ditedge.calibration.options import ConvertOptions
    from ditedge.runtime.plans.attention_trial import lint_graph

    folder = exported(name)
    if precision != "float32":
        convert_bundle(folder, tmp_path / "low", ConvertOptions(precision))
        folder = tmp_path / "low"
    bundle = open_bundle(folder)
    options = BuildOptions("tensorrt-rtx", archs=("sm86", "sm89", "sm120"), force=True)
    record = build_bundle(bundle, options)
    assert record.compute_capabilities == ["sm86", "sm89", "sm120"]
    assert record.plans["step"].source_sha256 == bundle.manifest.files["step.onnx"].sha256
    assert record.plans["step"].plan.bytes > bundle.manifest.files["step.onnx"].bytes / 2
    found = lint_graph(folder / "step.onnx", "sm89")
    assert [(a.heads, a.head_size, a.tokens) for a in found.attention] == [(heads, 64, tokens)] * blocks
    assert found.fused == (precision != "float32")
