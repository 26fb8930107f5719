"""Graphs and weights that are not what the manifest says."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from capi_ctypes import DitedgeError

from tests.cpp.support import BUNDLE, rehash


def with_external_weights(bundle: Path, location: str = "weights.bin", *, attribute: bool = False) -> Path:
    """step.onnx keeps its largest weights in the file `weights.bin`, which it calls `location`. The manifest is true of it."""
    path, data = bundle / "step.onnx", bundle / "weights.bin"
    model = onnx.load(path)
    if attribute:  # in a node instead of the graph's initializers
        tensors = [a.t for node in model.graph.node for a in node.attribute if a.HasField("t") and a.t.raw_data]
    else:
        tensors = list(model.graph.initializer)
    tensor = max(tensors, key=lambda tensor: len(tensor.raw_data))
    data.write_bytes(b"\0" * 64 + tensor.raw_data)
    entries = {"location": location, "offset": "64", "length": str(len(tensor.raw_data))}
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())
    rehash(bundle)
    return data


def test_weights_in_a_listed_file(
    later, gray_bundle: Path, onnxruntime_library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are the hashed ones: another file of that name in the working folder, or in place of the first, is not read."""
    handle = later(gray_bundle)
    handle.open_session(onnxruntime_library)
    expected = handle.latents()
    data = with_external_weights(gray_bundle)
    with pytest.raises(DitedgeError, match=r"step.onnx: keeps weights in 'weights.bin', which is not listed") as caught:
        later(gray_bundle)
    assert caught.value.status == BUNDLE
    manifest = json.loads((gray_bundle / "manifest.json").read_text())
    rehash(gray_bundle, files=manifest["files"] | {"weights.bin": {"sha256": "", "bytes": 0}})
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "weights.bin").write_bytes(b"\0" * data.stat().st_size)
    monkeypatch.chdir(tmp_path / "cwd")
    handle = later(gray_bundle)
    shutil.copy("weights.bin", gray_bundle / "new.bin")
    os.replace(gray_bundle / "new.bin", data)
    handle.open_session(onnxruntime_library)
    assert np.array_equal(handle.latents(), expected)
    with pytest.raises(DitedgeError, match=r"weights.bin: does not match its hash"):
        later(gray_bundle)


@pytest.mark.parametrize(
    "location", ["../weights.bin", "/etc/hostname", "./../weights.bin", "*/_ORT_MEM_ADDR_/*", "a\\b", "", "no.bin"]
)
def test_weights_in_files_that_are_not_listed(later, gray_bundle: Path, location: str) -> None:
    with_external_weights(gray_bundle, location)
    with pytest.raises(DitedgeError, match=r"step.onnx: keeps weights in '.*', which is not listed") as caught:
        later(gray_bundle)
    assert caught.value.status == BUNDLE


def test_weights_of_a_node_in_another_file(later, gray_bundle: Path) -> None:
    """Even in a listed file: ONNX Runtime would open it by its name."""
    manifest = json.loads((gray_bundle / "manifest.json").read_text())
    (gray_bundle / "weights.bin").touch()
    rehash(gray_bundle, files=manifest["files"] | {"weights.bin": {"sha256": "", "bytes": 0}})
    model = onnx.load(gray_bundle / "step.onnx")
    value = onnx.numpy_helper.from_array(np.ones(300, np.float32))
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["unused"], value=value))
    (gray_bundle / "step.onnx").write_bytes(model.SerializeToString())
    with_external_weights(gray_bundle, attribute=True)
    with pytest.raises(DitedgeError, match="only the weights of the graph itself may be in another file"):
        later(gray_bundle)


def edited(bundle: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(bundle / "step.onnx")
    edit(model)
    (bundle / "step.onnx").write_bytes(model.SerializeToString())
    rehash(bundle)


def sequence_output(model: onnx.ModelProto) -> None:
    kind = onnx.helper.make_tensor_sequence_value_info("next_state", onnx.TensorProto.FLOAT, None)
    model.graph.output[0].CopyFrom(kind)


def shapeless_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def double_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE


CONTRACTS: dict[str, Callable[[onnx.ModelProto], None]] = {
    "another name": lambda model: setattr(model.graph.output[0], "name", "elsewhere"),
    "another input": lambda model: setattr(model.graph.input[0], "name", "elsewhere"),
    "one more output": lambda model: model.graph.output.add().CopyFrom(model.graph.output[0]),
    "no output": lambda model: model.graph.ClearField("output"),
    "a sequence": sequence_output,
    "no shape": shapeless_input,
    "another type": double_input,
    "another rank": lambda model: model.graph.input[0].type.tensor_type.shape.dim.add(),
    "another size": lambda model: setattr(model.graph.output[0].type.tensor_type.shape.dim[2], "dim_value", 77),
    "a size that is open": lambda model: model.graph.output[0].type.tensor_type.shape.dim[3].Clear(),
    "a thousand inputs": lambda model: [model.graph.input.add().CopyFrom(model.graph.input[0]) for _ in range(1000)],
}


@pytest.mark.parametrize("name", CONTRACTS)
def test_graphs_that_are_not_what_the_manifest_says(later, gray_bundle: Path, name: str) -> None:
    edited(gray_bundle, CONTRACTS[name])
    with pytest.raises(DitedgeError, match=r"step.onnx: .*manifest describes") as caught:
        later(gray_bundle)
    assert caught.value.status == BUNDLE


@pytest.mark.parametrize(
    "raw", [b"", b"ORTM" * 9, b"\x3a\xff\xff\xff\xff\x0f", b"\x3a" * 999, b"\xff" * 99, b"\x0b\x0c"]
)
def test_files_that_are_no_onnx(later, gray_bundle: Path, raw: bytes) -> None:
    (gray_bundle / "step.onnx").write_bytes(raw)
    rehash(gray_bundle)
    with pytest.raises(DitedgeError, match="step.onnx") as caught:
        later(gray_bundle)
    assert caught.value.status == BUNDLE


def test_graphs_in_graphs_are_bounded(later, gray_bundle: Path) -> None:
    def nest(model: onnx.ModelProto) -> None:
        inner = onnx.GraphProto()
        for _ in range(20):
            outer = onnx.GraphProto()
            outer.node.add().attribute.add().g.CopyFrom(inner)
            inner = outer
        model.graph.node.add().attribute.add().g.CopyFrom(inner)

    edited(gray_bundle, nest)
    with pytest.raises(DitedgeError, match="nested more than 32 deep"):
        later(gray_bundle)
