"""Norms and attention in parts compute what the whole does, but for rounding, at any size."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from ditedge.calibration.graph.parts import attention_in_rows, norms_in_parts
from ditedge.calibration.graph.surgery import load_graph, save_graph
from ditedge.export.graphs.modules import LatentDecoder
from ditedge.export.graphs.to_onnx import onnx_from_module
from ditedge.export.networks.vae import KlConfig, KlDecoder


def exported(path: Path, groups: int) -> Path:
    path.write_bytes(exported_once(groups))
    return path


@cache
def exported_once(groups: int) -> bytes:
    torch.manual_seed(0)
    vae = KlDecoder(KlConfig(4, 3, (32, 48, 64), 1, norm_num_groups=groups)).eval().requires_grad_(False)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if "norm" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whole.onnx"
        onnx_from_module(LatentDecoder(vae), {"latent": torch.randn(2, 4, 8, 12)}, "image", {"latent": {0: "B"}}, path)
        return path.read_bytes()


def values(path: Path, z: np.ndarray) -> np.ndarray:
    """What the decoder computes before it rounds to 255 levels, by ONNX Runtime without its fusions."""
    model = load_graph(path)
    clip = next(node for node in model.graph if node.op_type == "Clip")
    model.graph.outputs.append(clip.inputs[0])
    clip.inputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    save_graph(model, path.with_suffix(".looked.onnx"))
    session = onnxruntime.InferenceSession(path.with_suffix(".looked.onnx"), providers=["CPUExecutionProvider"])
    return session.run(None, {"latent": z})[1]


def test_parts_are_the_whole(tmp_path: Path) -> None:
    whole, parts = exported(tmp_path / "whole.onnx", groups=16), tmp_path / "parts.onnx"
    model = load_graph(whole)
    norms = sum(node.op_type == "InstanceNormalization" for node in model.graph)
    assert (norms_in_parts(model), attention_in_rows(model)) == (9, 1) and norms == 18
    save_graph(model, parts)
    counts = [node.op_type for node in load_graph(parts).graph]
    assert counts.count("InstanceNormalization") == 9 + 4 * 2 + 5 * 8, "more parts behind each upsampling"
    assert counts.count("Softmax") == 8
    z = np.random.default_rng(0).standard_normal((2, 4, 8, 12)).astype(np.float32)
    a, b = values(whole, z), values(parts, z)
    assert a.std() > 5 and np.abs(a - b).max() < 1e-3 * a.std()


def test_a_number_of_groups_that_does_not_fall_apart_stays_whole(tmp_path: Path) -> None:
    model = load_graph(exported(tmp_path / "odd.onnx", groups=1))
    before = [node.op_type for node in model.graph]
    assert norms_in_parts(model) == 0
    assert [node.op_type for node in model.graph] == before


@pytest.mark.parametrize("op_type", ["Relu", "Sigmoid"])
def test_what_is_no_group_norm_of_the_exporter_is_left_alone(tmp_path: Path, op_type: str) -> None:
    """Somebody reads between the norm and its affine parameters: the part would be lost to them."""
    model = load_graph(exported(tmp_path / "whole.onnx", groups=16))
    norms = [node for node in model.graph if node.op_type == "InstanceNormalization"]
    for norm in norms:
        reader = ir.node(op_type, [norm.outputs[0]])
        model.graph.insert_after(norm, reader)
        model.graph.outputs.append(reader.outputs[0])
    assert norms_in_parts(model) == 0
