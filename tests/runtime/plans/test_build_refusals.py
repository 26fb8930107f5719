"""What cannot be built, in words: options, graphs, libraries."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from ditedge.cli import main
from ditedge.runtime import open_bundle
from ditedge.runtime.files import sha256_of_file
from ditedge.runtime.plans import build
from ditedge.runtime.plans import library as tensorrt_library
from ditedge.runtime.plans.record import PLAN_NAMES
from tests.runtime.plans.here import needs_rtx, without_gpu

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


@pytest.fixture
def decoder_alone(gray_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of which only the decoder is built: the other graphs would be, before it is refused."""
    monkeypatch.setattr(build, "PLAN_NAMES", {"decoder": PLAN_NAMES["decoder"]})
    return gray_bundle


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
def test_fp8_on_ampere_is_refused_in_words(decoder_alone: Path) -> None:
    side = open_bundle(decoder_alone).manifest.model.input_size
    weight = numpy_helper.from_array(np.eye(side, dtype=np.float32), "w")
    scale = numpy_helper.from_array(np.float32(0.01), "s")
    zero = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0.0])
    nodes = []
    for name in ("latent", "w"):
        nodes.append(helper.make_node("QuantizeLinear", [name, "s", "z"], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "s", "z"], [f"{name}_dq"]))
    nodes.append(helper.make_node("MatMul", ["latent_dq", "w_dq"], ["pixels"]))
    replace_decoder(decoder_alone, nodes, [weight, scale, zero])
    refused(
        decoder_alone, ["--target", "tensorrt-rtx", "--arch", "sm86"], "fp8_e4m3 numbers, which sm86 cannot compute"
    )


@needs_rtx
def test_an_operator_that_tensorrt_lacks_is_named(decoder_alone: Path) -> None:
    replace_decoder(decoder_alone, [helper.make_node("Frobnicate", ["latent"], ["pixels"], "odd", domain="mine")], [])
    refused(decoder_alone, ["--target", "tensorrt-rtx"], "refuses operator Frobnicate (node odd) of decoder.onnx")


@needs_rtx
def test_asymmetric_quantisation_is_refused_in_words(decoder_alone: Path) -> None:
    scale = numpy_helper.from_array(np.float32(0.01), "s")
    zero = numpy_helper.from_array(np.array(3, np.int8), "z")
    nodes = [
        helper.make_node("QuantizeLinear", ["latent", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["pixels"]),
    ]
    replace_decoder(decoder_alone, nodes, [scale, zero])
    refused(decoder_alone, ["--target", "tensorrt-rtx"], "quantise again with zero points of 0")
