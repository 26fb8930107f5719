"""Layer by layer where a model takes prompts: its context is compared, and each side's step reads its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from ditedge.calibration.convert import convert_bundle
from ditedge.calibration.graph.surgery import load_graph, save_graph
from ditedge.calibration.layers.compare import compare_layers
from ditedge.calibration.layers.request import LayersOptions
from ditedge.calibration.options import ConvertOptions, QuantizeOptions
from ditedge.calibration.quantize import quantize_bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.files import sha256_of_file
from ditedge.runtime.loop.verification import VerifyRequest
from tests.conftest import BUNDLES, PIXART

BUNDLE = BUNDLES / PIXART


def compared(bundle: Path):
    return compare_layers(VerifyRequest(bundle), LayersOptions(True, BUNDLE))


@pytest.fixture(scope="module")
def low(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("layers") / "low"
    convert_bundle(BUNDLE, out, ConvertOptions("fp16", text_encoder=False, decoder=False))
    return out


def test_16_bit_passes_in_every_graph(low: Path) -> None:
    found = compared(low)
    assert found.passed, "\n".join(found.lines())
    assert [graph.graph for graph in found.graphs] == ["context", "conditioner", "step"] and found.same == ["decoder"]
    layers = {row.layer for row in found.graphs[2].rows()}
    assert {"transformer_blocks.1.attn2.to_q", "transformer_blocks.1.ff.net.2", "proj_out"} <= layers
    context = next(tensor for tensor in found.graphs[0].compared if tensor.point.tensor == "context")
    assert 0 < context.error < 1e-2


def test_int8_passes(tmp_path: Path) -> None:
    quantize_bundle(BUNDLE, tmp_path / "int8", QuantizeOptions(program="ddim-10", text_encoder="int4"))
    found = compared(tmp_path / "int8")
    assert found.passed, "\n".join(found.lines())


def test_a_fault_in_the_context_is_named(low: Path, tmp_path: Path) -> None:
    """The values of the second block's prompt are 4 times as large: that is where it breaks, and not the step."""
    shutil.copytree(low, tmp_path / "bad")
    path, manifest = tmp_path / "bad" / "context.onnx", json.loads((low / "manifest.json").read_text())
    model = load_graph(path)
    bias = next(v for k, v in model.graph.initializers.items() if "transformer_blocks.1.attn2.to_v.bias" in k)
    weight = bias.consumers()[0].inputs[0].producer().inputs[1]
    for value in (bias, weight):
        value.const_value = ir.tensor(value.const_value.numpy() * np.float16(4), name=value.name)
    save_graph(model, path)
    manifest["files"][path.name] = {"sha256": sha256_of_file(path), "bytes": path.stat().st_size}
    (tmp_path / "bad" / "manifest.json").write_text(json.dumps(manifest))
    found = compared(tmp_path / "bad")
    assert not found.passed
    graph, tensor = found.first_beyond or pytest.fail("passed")
    assert graph == "context" and tensor.point.layer == "transformer_blocks.1.attn2.to_v"


def test_bundles_of_another_kind() -> None:
    with pytest.raises(RequestError, match="was not made from"):
        compare_layers(VerifyRequest(BUNDLE), LayersOptions(True, BUNDLES / "gray1_cfg"))
