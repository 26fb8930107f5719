"""The exporter is deterministic, which tests/exports_once.py leans on; and its key sees every change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ditedge.calibration.graph.linears import find_linears
from ditedge.calibration.graph.surgery import load_graph
from ditedge.export.graphs.to_onnx import onnx_from_module
from tests.exports_once import key_of


class Scale(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by, self.shift = by, torch.ones(3)
        self.linear = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.by + self.shift


INPUTS = {"x": torch.zeros(2, 3)}


def made(by: float = 2.0) -> Scale:
    torch.manual_seed(0)
    return Scale(by)


def test_the_same_module_makes_the_same_file(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        onnx_from_module(made(), INPUTS, "y", {"x": {0: "B"}}, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def other_forward(module: Scale) -> None:
    module.forward = lambda x: x  # type: ignore[method-assign]


CHANGES: dict[str, Callable[[Scale], object]] = {
    "weight": lambda module: module.linear.weight.data[0, 0].add_(1e-7),
    "attribute": lambda module: setattr(module, "by", 3.0),
    "plain tensor": lambda module: setattr(module, "shift", torch.tensor([1.0, 1.0, 1.0 + 1e-7])),
    "precision": lambda module: module.double(),
    "forward": other_forward,
    "eval": lambda module: module.eval(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_another_key(change: str) -> None:
    module = made()
    CHANGES[change](module)
    assert key_of(module, INPUTS, 20) != key_of(made(), INPUTS, 20) == key_of(made(), INPUTS, 20)


def test_sizes_and_settings_are_in_the_key() -> None:
    plain = key_of(made(), INPUTS, 20)
    assert plain != key_of(made(), {"x": torch.zeros(3, 3)}, 20)
    assert plain != key_of(made(), INPUTS, 21)


class Layers(nn.Module):
    """A layer without a bias, two whose biases are equal, one that is used twice, a product that is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(8, 8, bias=False)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.out, self.twice = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        for layer in (self.mlp[2], self.out):
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(self.out(x + self.mlp(self.query(x))))
        return self.twice(x) + x @ torch.eye(8)


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = Layers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)


def test_every_linear_layer_has_a_name_of_its_own(tmp_path: Path) -> None:
    onnx_from_module(Holder(), {"x": torch.randn(2, 3, 8)}, "y", {"x": {0: "B"}}, tmp_path / "g.onnx")
    names = [linear.name for linear in find_linears(load_graph(tmp_path / "g.onnx"))]
    assert names[:4] == ["query", "mlp.0", "mlp.2", "out"] and len(set(names)) == len(names)
    assert all(name.startswith("node_") for name in names[4:])
