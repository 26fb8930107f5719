"""OpenVINO: the recorded trajectories in float32, how far bfloat16 is from them, and what it does with files and errors."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from ditedge.cli import main
from ditedge.runtime import EngineOptions, Session, generate, open_bundle
from ditedge.runtime.doctor import examine
from ditedge.runtime.errors import BundleError, Cancelled, EngineError
from ditedge.runtime.loop import engine_openvino
from ditedge.runtime.loop.engines import open_engine
from ditedge.runtime.loop.verify import replay
from ditedge.runtime.processors import usable_processors
from tests.conftest import CASES
from tests.runtime.bundle.support import list_file, weights_beside
from tests.runtime.loop.test_image_run import alone, one_after_the_other
from tests.runtime.loop.test_interruptible import ctrl_c, soon

OPENVINO, BF16 = EngineOptions("openvino"), EngineOptions("openvino-bf16")
installed = pytest.mark.skipif(
    find_spec("openvino") is None, reason="openvino is not installed: pip install 'ditedge[openvino]'"
)
RNG = np.random.default_rng(0)


def bf16_or_skip() -> None:
    if why := engine_openvino.refusal("openvino-bf16"):
        pytest.skip(why)


def worst(bundle: Path, options: EngineOptions) -> float:
    with Session(open_bundle(bundle), options) as session:
        return max(replay(session, golden).error.max() for golden in session.bundle.manifest.golden)


def graph_of(folder: Path, nodes: list[Any], weights: dict[str, np.ndarray], shape: list[Any], out: list[Any]) -> Path:
    """x float32 `shape` -> y float32 `out`, as a file."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), folder / "g.onnx")
    return folder / "g.onnx"


@installed
@pytest.mark.parametrize("case", CASES)
def test_float32_follows_the_recorded_trajectories(golden_bundle, case: str) -> None:
    assert worst(golden_bundle(case), OPENVINO) < 2e-6


@installed
@pytest.mark.parametrize("case", CASES)
def test_bfloat16_rounds_the_step_alone(golden_bundle, case: str) -> None:
    """With the conditioner in bfloat16, which holds three digits of a timestep, these are 0.086, 0.41 and 0.11 off."""
    bf16_or_skip()
    assert 1e-4 < worst(golden_bundle(case), BF16) < 0.03


@installed
def test_pictures_are_those_of_onnx_runtime(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("pixel3_no_null_class"))
    pictures = [
        generate(bundle, [0, 1, 2], [5, 6, 7], guidance=1.0, options=EngineOptions(name)).astype(int)
        for name in ("cpu", "openvino")
    ]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1 and pictures[0].std() > 10


@installed
def test_batches_of_any_size_on_one_session(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    with Session(bundle, OPENVINO) as session:

        def latents(labels: list[int], seeds: list[int], guidance: float) -> np.ndarray:
            return generate(bundle, labels, seeds, guidance=guidance, session=session, output="latents")

        three = latents([1, 2, 3], [4, 5, 6], 2.0)
        for i in (2, 0, 1):
            alone = latents([i + 1], [i + 4], 2.0)
            assert np.linalg.norm(alone - three[i]) < 1e-6 * np.linalg.norm(alone)
        latents([1] * 5, [*range(5)], 1.0)  # no guidance: half the evaluations
        assert np.array_equal(latents([1, 2, 3], [4, 5, 6], 2.0), three)


@installed
@pytest.mark.parametrize("case", [CASES[0], *(pytest.param(case, marks=pytest.mark.slow) for case in CASES[1:])])
def test_a_mixed_batch_is_its_images_alone(golden_bundle, case: str) -> None:
    bundle = open_bundle(golden_bundle(case))
    with Session(bundle, OPENVINO) as session:
        expected = alone(bundle, session)
        runs, _ = one_after_the_other(bundle, session)
    for run, latent in zip(runs, expected, strict=True):
        assert np.linalg.norm(run.latent - latent) < 1e-6 * np.linalg.norm(latent), run.program.name


@installed
def test_weights_in_other_files_are_those_that_were_hashed(gray_bundle: Path) -> None:
    with Session(open_bundle(gray_bundle), OPENVINO) as session:
        expected = generate(session.bundle, [1, 2], [3, 4], guidance=2.0, session=session)
    weights_beside(gray_bundle)
    list_file(gray_bundle, "weights.bin")
    bundle = open_bundle(gray_bundle)
    (gray_bundle / "weights.bin").rename(gray_bundle / "away")
    (gray_bundle / "weights.bin").write_bytes(bytes((gray_bundle / "away").stat().st_size))
    with Session(bundle, OPENVINO) as session:
        session.load("step")
        (gray_bundle / "away").write_bytes(b"")  # also under the loaded graph
        assert np.array_equal(generate(bundle, [1, 2], [3, 4], guidance=2.0, session=session), expected)
    with Session(bundle, OPENVINO) as session, pytest.raises(BundleError, match="does not match its hash"):
        session.load("step")


@installed
def test_a_graph_whose_name_is_gone(gray_bundle: Path) -> None:
    bundle = open_bundle(gray_bundle)
    shutil.rmtree(gray_bundle)
    assert generate(bundle, [1], [3], guidance=2.0, options=OPENVINO).shape == (1, 8, 8, 1)


@installed
def test_threads_and_precision_are_what_was_asked_for(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    for options, graph, precision in (
        (EngineOptions("openvino", threads=999), "step", "f32"),
        (EngineOptions("openvino", threads=999), "conditioner", "f32"),
        (EngineOptions("openvino-bf16", threads=999), "step", "bf16"),
        (EngineOptions("openvino-bf16", threads=999), "conditioner", "f32"),
        (EngineOptions("openvino-bf16", threads=999), "decoder", "f32"),
    ):
        if options.provider == "openvino-bf16" and engine_openvino.refusal("openvino-bf16"):
            continue
        with Session(bundle, options) as session:
            compiled = session.engine(graph)._compiled
            assert compiled.get_property("INFERENCE_NUM_THREADS") == usable_processors()
            assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == precision


@installed
def test_weights_at_rest_are_float32_again_when_they_compute(tmp_path: Path) -> None:
    """OpenVINO's own choice would round the activations to 8 bits, too."""
    weight, scale = RNG.integers(-127, 128, (192, 48)).astype(np.int8), RNG.uniform(0.5, 2, 48).astype(np.float32)
    nodes = [helper.make_node("DequantizeLinear", ["w", "s", "zeros"], ["d"], axis=1),
             helper.make_node("MatMul", ["x", "d"], ["y"])]  # fmt: skip
    weights = {"w": weight, "s": scale, "zeros": np.zeros(48, np.int8)}
    path = graph_of(tmp_path, nodes, weights, ["n", 192], ["n", 48])
    x, y = RNG.uniform(-3, 3, (5, 192)).astype(np.float32), np.empty((5, 48), np.float32)
    with closing(open_engine(path, OPENVINO)) as engine:
        engine.run({"x": x}, {"y": y})
    np.testing.assert_allclose(y, x.astype(float) @ (weight * scale.astype(float)), rtol=1e-5, atol=1e-2)


@installed
def test_int8_of_the_static_form_runs(tmp_path: Path) -> None:
    weight, scale = RNG.integers(-127, 128, (192, 48)).astype(np.int8), RNG.uniform(0.5, 2, 48).astype(np.float32)
    nodes = [helper.make_node("QuantizeLinear", ["x", "s_x", "zero"], ["q"]),
             helper.make_node("DequantizeLinear", ["q", "s_x", "zero"], ["r"]),
             helper.make_node("DequantizeLinear", ["w", "s", "zeros"], ["d"], axis=1),
             helper.make_node("MatMul", ["r", "d"], ["y"])]  # fmt: skip
    step = np.float32(2.5 / 127)
    weights = {"w": weight, "s": scale, "zeros": np.zeros(48, np.int8), "s_x": np.array(step), "zero": np.array(0, np.int8)}  # fmt: skip
    path = graph_of(tmp_path, nodes, weights, ["n", 192], ["n", 48])
    x, y = RNG.uniform(-3, 3, (5, 192)).astype(np.float32), np.empty((5, 48), np.float32)
    with closing(open_engine(path, OPENVINO)) as engine:
        engine.run({"x": x}, {"y": y})
    exact = (np.clip(np.rint(x / step), -128, 127) * step) @ (weight * scale.astype(float))
    assert np.linalg.norm(y - exact) < 2e-3 * np.linalg.norm(exact)


@installed
def test_int8_with_scales_of_tokens_is_refused(tmp_path: Path) -> None:
    """As many rows as columns: OpenVINO would take the scales for those of the columns and say nothing."""
    nodes = [helper.make_node("Abs", ["x"], ["a"]),
             helper.make_node("ReduceMax", ["a", "last"], ["s"], keepdims=0),
             helper.make_node("Shape", ["s"], ["n"]),
             helper.make_node("Expand", ["zero", "n"], ["z"]),
             helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=0),
             helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=0)]  # fmt: skip
    weights = {"last": np.array([-1]), "zero": np.array(128, np.uint8)}
    path = graph_of(tmp_path, nodes, weights, ["n", 4], ["n", 4])
    with pytest.raises(EngineError, match=r"g\.onnx: int8 with a scale for each token.*--form tensorrt"):
        open_engine(path, OPENVINO)


@installed
def test_errors_are_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = graph_of(tmp_path, [helper.make_node("NoSuch", ["x"], ["y"])], {}, [2, 3], [2, 3])
    with pytest.raises(EngineError, match=r"g\.onnx: OpenVINO cannot load this graph: .*NoSuch") as found:
        open_engine(path, OPENVINO)
    assert "\n" not in str(found.value) and "src/" not in str(found.value)
    path.write_bytes(b"no graph at all")
    with pytest.raises(EngineError, match="cannot load this graph"):
        open_engine(path, OPENVINO)
    path = graph_of(tmp_path, [helper.make_node("Add", ["x", "x"], ["y"])], {}, ["n", 3], ["n", 3])
    x = np.ones((2, 3), np.float32)
    with closing(open_engine(path, OPENVINO)) as engine:
        for inputs, shape, message in (
            ({"x": x}, (4, 3), r"output 'y' is \[2, 3\], expected \[4, 3\]"),
            ({"x": x}, (1, 3), "OpenVINO failed"),
            ({"x": x.astype(np.int64)}, (2, 3), "OpenVINO failed"),
            ({}, (2, 3), "input 'x' of the graph was not given"),
        ):
            with pytest.raises(EngineError, match=message):
                engine.run(inputs, {"y": np.zeros(shape, np.float32)})
        x.flags.writeable = False
        result = np.zeros((2, 3), np.float32)
        engine.run({"x": x, "another": x}, {"y": result})
        assert np.array_equal(result, 2 * x)
    assert capfd.readouterr() == ("", "")


@installed
def test_a_cancel_and_ctrl_c_are_heard_between_operations(tmp_path: Path) -> None:
    """120 products of 4 GFLOP each."""
    names = ["x", *(f"h{i}" for i in range(119)), "y"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in zip(names, names[1:], strict=False)]
    path = graph_of(tmp_path, nodes, {"w": np.eye(1024, dtype=np.float32)}, ["n", 1024], ["n", 1024])
    x, y, cancel = np.ones((2048, 1024), np.float32), np.empty((2048, 1024), np.float32), threading.Event()
    with closing(open_engine(path, OPENVINO)) as engine:
        with soon(cancel.set), pytest.raises(Cancelled, match="within a step"):
            engine.run({"x": x}, {"y": y}, cancel)
        with soon(ctrl_c), pytest.raises(KeyboardInterrupt):
            engine.run({"x": x}, {"y": y})
        engine.run({"x": x[:2]}, {"y": y[:2]})
    assert np.array_equal(y[:2], x[:2])


@installed
@pytest.mark.parametrize(
    "arguments", [["verify"], pytest.param(["compare", "--provider-b", "openvino"], marks=pytest.mark.slow)]
)
def test_commands(golden_bundle, arguments: list[str]) -> None:
    bundle = str(golden_bundle("gray1_cfg"))
    command, *more = arguments
    more += {"verify": ["--provider", "openvino"], "compare": ["--against", bundle, "--count", "2", "--speed-rounds", "2"]}[command]  # fmt: skip
    result = CliRunner().invoke(main, [command, "--engine", bundle, *more], catch_exceptions=False)
    assert result.exit_code == 0, result.output


@installed
def test_importing_it_sends_and_writes_nothing(golden_bundle, tmp_path: Path) -> None:
    """By itself the package tells Google Analytics that it was imported, under an identity that it keeps in ~/intel."""
    code = (
        "import sys\nfrom ditedge.cli import main\n"
        f"main(['verify', '--engine', {str(golden_bundle('gray1_cfg'))!r}, '--provider', 'openvino'], standalone_mode=False)\n"
        "assert 'openvino' in sys.modules and not [m for m in sys.modules if m.startswith('openvino_telemetry')]"
    )
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_without_the_package_it_says_how_to_get_it(golden_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    engine_openvino._core.cache_clear()
    result = CliRunner().invoke(main, ["verify", "--engine", str(golden_bundle("gray1_cfg")), "--provider", "openvino"])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "Error: openvino is not installed: pip install 'ditedge[openvino]'"
    findings = {finding.name: finding for finding in examine()}
    assert findings["provider openvino"].remedy == "openvino is not installed: pip install 'ditedge[openvino]'"
    engine_openvino._core.cache_clear()


def test_a_processor_without_bfloat16_is_told_so(monkeypatch: pytest.MonkeyPatch, golden_bundle) -> None:
    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return ["FP32", "INT8"]

    monkeypatch.setattr(engine_openvino, "_core", Core)
    assert engine_openvino.refusal("openvino") == ""
    assert engine_openvino.refusal("openvino-bf16") == "this processor has no bfloat16 arithmetic: use openvino"
