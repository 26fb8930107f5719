"""Bundles that differ from the smallest golden one in a known place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from ditedge.calibration.graph.linears import find_linears
from ditedge.calibration.graph.surgery import load_graph, save_graph
from tests.calibration.variants import variant


@pytest.fixture
def gray(golden_bundle) -> Path:
    return golden_bundle("gray1_cfg")


@pytest.fixture
def derived(gray: Path, tmp_path: Path):
    """derived(name, change(ir.Model), precision="float32", of=gray) -> a bundle whose step graph was changed so."""

    def make(name: str, change: Callable[[Any], object], precision: str = "float32", of: Path = gray) -> Path:
        def edit(path: Path) -> None:
            model = load_graph(path)
            change(model)
            save_graph(model, path)

        out = variant(of, tmp_path / name, edit)
        manifest = json.loads((out / "manifest.json").read_text())
        manifest["graphs"]["step"]["precision"] = precision
        (out / "manifest.json").write_text(json.dumps(manifest))
        return out

    return make


def scaled(layer: str, factor: float) -> Callable[[Any], None]:
    """Multiplies the weights of one linear."""

    def change(model: Any) -> None:
        linear = next(linear for linear in find_linears(model) if linear.name == layer)
        linear.weight.const_value = ir.tensor(linear.weight.const_value.numpy() * factor, name=linear.weight.name)

    return change
