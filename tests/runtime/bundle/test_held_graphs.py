"""A graph is the manifest's, and its weights lie in files that are listed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from ditedge.runtime import open_bundle
from ditedge.runtime.bundle.held_files import HeldFile
from ditedge.runtime.bundle.onnx_files import read_onnx
from ditedge.runtime.errors import BundleError
from tests.runtime.bundle.support import list_file, rehash, sampled, weights_beside


@pytest.mark.parametrize("location", ["weights.bin", "/etc/passwd", "../weights.bin", "sub/../../x", "", "none.bin"])
def test_weights_in_files_that_are_not_listed_are_refused(gray_bundle: Path, location: str) -> None:
    weights_beside(gray_bundle, location)
    with pytest.raises(BundleError, match=r"step\.onnx: keeps weights in .* not listed in files"):
        open_bundle(gray_bundle)


@pytest.mark.parametrize("way", ["memory", "links", "mapped", "bytes"])
@pytest.mark.parametrize("location", ["weights.bin", "./weights.bin"])
def test_listed_weights_are_used_as_they_were_hashed(
    gray_bundle: Path, monkeypatch: pytest.MonkeyPatch, way: str, location: str
) -> None:
    expected = sampled(open_bundle(gray_bundle))
    weights_beside(gray_bundle, location)
    list_file(gray_bundle, "weights.bin")
    if way == "links":
        monkeypatch.delattr(onnxruntime.SessionOptions, "add_external_initializers_from_files_in_memory")
    if way == "mapped":  # ONNX Runtime copies what it is given in memory, so it is given files where it takes them

        def given_in_memory(*_: object) -> None:
            raise AssertionError("the weights were copied")

        monkeypatch.setattr(
            onnxruntime.SessionOptions, "add_external_initializers_from_files_in_memory", given_in_memory
        )
    if way == "bytes":
        monkeypatch.setattr(HeldFile, "alias", lambda self: None)
    bundle = open_bundle(gray_bundle)
    if way in ("memory", "bytes"):  # versions 1.20 to 1.23 follow a link to a deleted file, later ones do not
        (gray_bundle / "weights.bin").unlink()
    assert np.array_equal(sampled(bundle), expected)


def test_listed_weights_that_change_are_refused(gray_bundle: Path) -> None:
    weights_beside(gray_bundle)
    list_file(gray_bundle, "weights.bin")
    bundle = open_bundle(gray_bundle)
    with (gray_bundle / "weights.bin").open("r+b") as file:
        file.write(b"\xff" * 4)
    with pytest.raises(BundleError, match=r"weights\.bin: does not match its hash"):
        sampled(bundle)
    with pytest.raises(BundleError, match=r"weights\.bin: does not match its hash"):
        bundle.graph_file("step")


# What an engine would not bind


def other_graph(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        model = onnx.load(folder / "step.onnx")
        change(model)
        (folder / "step.onnx").write_bytes(model.SerializeToString())
        rehash(folder)

    return write


def renamed(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = model.graph.output[0].name = "other"


def nested(model: onnx.ModelProto) -> None:
    graph = model.graph
    for _ in range(40):
        attribute = helper.make_attribute("body", helper.make_graph([], "g", [], []))
        graph.node.add(op_type="If").attribute.append(attribute)
        graph = graph.node[-1].attribute[0].g


def hidden_weights(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="w", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="step.onnx")
    model.graph.node.add(op_type="Constant", output=["c"]).attribute.append(helper.make_attribute("value", tensor))


GRAPHS = {
    "another output": (renamed, "has output 'other', which the manifest does not list"),
    "a text": (
        lambda m: m.graph.output[0].CopyFrom(helper.make_tensor_value_info("next_state", 8, [1])),
        "'next_state'",
    ),
    "a sequence": (
        lambda m: m.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("next_state", 1, None)),
        "tensor 'next_state' is of a type or rank",
    ),
    "half": (
        lambda m: m.graph.output[0].CopyFrom(helper.make_tensor_value_info("next_state", 10, [1] * 5)),
        "'next_state'",
    ),
    "another rank": (
        lambda m: m.graph.input[0].CopyFrom(helper.make_tensor_value_info("state", 1, [1, 1])),
        r"input 'state' float32 \[1, 1\] is 'state' float32 \[\?, \?, 1, 8, 8\] in the manifest",
    ),
    "one more input": (
        lambda m: m.graph.input.append(helper.make_tensor_value_info("more", 1, [1])),
        "has input 'more', which the manifest does not list",
    ),
    "no output": (lambda m: m.graph.ClearField("output"), "has no output 'next_state'"),
    "another engine's file": (lambda m: m.graph.node.add(op_type="EPContext"), "loads another engine's file"),
    "deep": (nested, "nested more than 32 deep"),
    "weights in a node": (hidden_weights, "only the weights of the graph itself"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_that_are_not_the_manifests(gray_bundle: Path, name: str) -> None:
    change, complaint = GRAPHS[name]
    other_graph(change)(gray_bundle)
    with pytest.raises(BundleError, match=rf"step\.onnx: .*{complaint}") as caught:
        open_bundle(gray_bundle)
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_bytes_are_a_graph_or_one_sentence(golden_bundle, data: st.DataObject) -> None:
    raw = bytearray((golden_bundle("gray1_cfg") / "decoder.onnx").read_bytes())
    if data.draw(st.booleans()):
        for _ in range(data.draw(st.integers(1, 5))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    else:
        raw = bytearray(data.draw(st.binary(max_size=200)))
    try:
        read_onnx(bytes(raw), Path("x.onnx"))
    except BundleError as error:
        assert str(error).startswith("x.onnx: ") and "\n" not in str(error)


# Files that a device may leave out
