"""Residual sums and the last convolution in parts compute what the whole does, and nothing is joined or left over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditedge.calibration.formats import static_decoder
from ditedge.calibration.formats.static_decoder import static_int8
from ditedge.calibration.graph.parts import norms_in_parts
from ditedge.calibration.graph.residuals import last_convolution_in_parts, residuals_in_parts
from ditedge.calibration.graph.surgery import load_graph, save_graph
from tests.calibration.graph.test_parts import exported, values


def latents(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 4, 8, 12)).astype(np.float32)


def test_sums_in_parts_are_the_whole(tmp_path: Path) -> None:
    whole, norms, parts = (tmp_path / f"{name}.onnx" for name in ("whole", "norms", "parts"))
    model = load_graph(exported(whole, groups=16))
    norms_in_parts(model)
    save_graph(model, norms)
    assert (residuals_in_parts(model), last_convolution_in_parts(model)) == (4, 9)
    save_graph(model, parts)
    a, b, c = (values(path, latents(2)) for path in (whole, norms, parts))
    # In float32 every convolution behind an upsampling reads joined parts, and adds them in another order.
    assert a.std() > 5 and np.abs(b - c).max() < 1e-3 * a.std() and np.abs(a - c).max() < 1e-3 * a.std()


def test_int8_pictures_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = exported(tmp_path / "whole.onnx", groups=16)
    static_int8(exact, tmp_path / "parts.onnx", latents(2))
    for name in ("residuals_in_parts", "last_convolution_in_parts"):
        monkeypatch.setattr(static_decoder, name, lambda model: 0)
    static_int8(exact, tmp_path / "norms.onnx", latents(2))
    a, b = (values(tmp_path / f"{name}.onnx", latents(2)) for name in ("norms", "parts"))
    assert np.abs(a - b).max() < 2e-6 * np.abs(a).max(), "only the last convolution adds in another order"


def test_no_large_float_is_left_whole_in_int8_and_everything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    static_int8(exported(tmp_path / "whole.onnx", groups=16), path, latents(2))
    graph = load_graph(path).graph
    unread = [node.name for node in graph if not any(out.uses() or out.is_graph_output() for out in node.outputs)]
    assert not unread, "a node that nobody reads is computed all the same, and holds what it reads"
    shapes = large_floats(path)
    assert not shapes, f"between two upsamplings and the picture only bytes are whole: {shapes}"


def large_floats(path: Path) -> dict[str, Any]:
    """Float values of as many channels as a block has, behind the last upsampling, as ONNX Runtime would see them."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    types = {value.name: value.type.tensor_type for value in model.graph.value_info}
    joined = [node for node in model.graph.node if node.op_type in ("Concat", "Add", "Mul", "Sigmoid")]
    floats = {node.output[0]: types.get(node.output[0]) for node in joined}
    sizes = {
        name: [dim.dim_value for dim in kind.shape.dim]
        for name, kind in floats.items()
        if kind is not None and kind.elem_type == onnx.TensorProto.FLOAT
    }
    return {name: size for name, size in sizes.items() if len(size) == 4 and size[1] >= 32 and size[2] == 32}
