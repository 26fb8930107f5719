"""Weights of other files, named by their addresses: what the onnx package reads back, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ditedge.runtime.bundle.onnx_weights import weights_in_memory
from ditedge.runtime.errors import BundleError

PLACES = {"a.bin": (1 << 40, 400), "folder/b.bin": (3 << 40, 64)}


def model(**external: tuple[tuple[str, str], ...]) -> onnx.ModelProto:
    """Initializers of the given external data between two that are in the model."""
    tensors = [numpy_helper.from_array(np.arange(300, dtype=np.float32), "first")]
    for name, entries in external.items():
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
        for key, value in entries:
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
    tensors.append(numpy_helper.from_array(np.float32(1), "last"))
    graph = helper.make_graph([helper.make_node("Identity", ["first"], ["y"])], "g", [], [], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_addresses_take_the_place_of_files_and_all_else_stays() -> None:
    before = model(
        v=(("location", "a.bin"), ("offset", "128"), ("length", "16")),
        w=(("length", "16"), ("location", "folder/b.bin"), ("checksum", "x")),
        u=(("location", "a.bin"), ("offset", "384")),
    )
    after = onnx.load_from_string(weights_in_memory(before.SerializeToString(), PLACES, Path("g.onnx")))
    found = [{e.key: e.value for e in tensor.external_data} for tensor in after.graph.initializer]
    here = "*/_ORT_MEM_ADDR_/*"
    assert found == [
        {},
        {"location": here, "offset": str((1 << 40) + 128), "length": "16"},
        {"location": here, "offset": str(3 << 40), "length": "16"},
        {"location": here, "offset": str((1 << 40) + 384), "length": "16"},
        {},
    ]
    for one in (before, after):
        for tensor in one.graph.initializer:
            del tensor.external_data[:]
    assert after == before


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ((("location", "a.bin"), ("offset", "385"), ("length", "16")), "beyond the end of 'a.bin'"),
        ((("location", "a.bin"), ("offset", "401")), "beyond the end of 'a.bin'"),
        ((("location", "a.bin"), ("offset", "-16"), ("length", "16")), "the place of a weight is no number"),
        ((("location", "a.bin"), ("offset", "9" * 30)), "the place of a weight is no number"),
        ((("location", "c.bin"),), "not in which"),
        ((("offset", "0"),), "not in which"),
    ],
)
def test_a_weight_outside_its_file_is_refused(entries: tuple[tuple[str, str], ...], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        weights_in_memory(model(w=entries).SerializeToString(), PLACES, Path("g.onnx"))


def test_a_graph_cannot_name_an_address_itself() -> None:
    """The marker of memory is a file like any other, and what counts of a name that is given twice is the last."""
    entries = (("location", "*/_ORT_MEM_ADDR_/*"), ("offset", "128"), ("length", "16"))
    with pytest.raises(BundleError, match="not in which"):
        weights_in_memory(model(w=entries).SerializeToString(), PLACES, Path("g.onnx"))
    raw = weights_in_memory(model(w=(*entries, ("location", "a.bin"))).SerializeToString(), PLACES, Path("g.onnx"))
    (offset,) = [entry.value for entry in onnx.load_from_string(raw).graph.initializer[1].external_data if entry.key == "offset"]  # fmt: skip
    assert int(offset) == (1 << 40) + 128
