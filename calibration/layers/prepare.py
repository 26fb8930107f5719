"""Two graphs as files in which any tensor can be marked as an output: float32 at its end, whatever it is inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph.lowering import LOW, emulated
from ..graph.surgery import load_graph, save_graph
from .pairing import Point, pair

CHUNK_BYTES = 512 << 20  # of the tensors that one engine gives at a time


@dataclass(frozen=True)
class Pair:
    """One graph of both bundles, written for comparing."""

    graph: str  # "step"
    a: Path
    b: Path
    points: list[Point]  # `other` is a tensor of float32 in b
    chunks: list[list[int]]  # indices of the points that have one

    @property
    def matched(self) -> list[Point]:
        return [point for point in self.points if point.other]


def prepare(
    graph: str, a: Path, b: Path, folder: Path, *, letters: Mapping[str, int], rounds: bool, smoothed: bool
) -> Pair:
    """Pairs the graphs `a`, in float32, and `b`, and writes both into `folder`.

    rounds: nodes of b in 16 bit are to round as 16-bit hardware does, on ONNX Runtime's CPU provider.
    letters: what the variable dimensions are. Raises EngineError.
    """
    model_a, model_b = load_graph(a), load_graph(b)
    if rounds:
        emulated(model_b)
    points = pair(model_a, model_b, smoothed)
    sizes = {value.name: _bytes(value, letters) for node in model_a.graph for value in node.outputs}
    named = {value.name: value for node in model_b.graph for value in node.outputs}
    points = [replace(p, other=_as_float(model_b, named[p.other])) if p.other else p for p in points]
    paths = folder / f"{graph}-a.onnx", folder / f"{graph}-b.onnx"
    for model, path in zip((model_a, model_b), paths, strict=True):
        save_graph(model, path)
    chosen = [i for i, point in enumerate(points) if point.other]
    return Pair(graph, *paths, points, list(_chunks(chosen, [sizes[point.tensor] for point in points])))


def _as_float(model: Any, value: Any) -> str:
    """The name of the value, or of a Cast of it where it is in 16 bit: NumPy has no bfloat16."""
    if value.dtype not in LOW:
        return str(value.name)
    cast = ir.node("Cast", [value], attributes={"to": int(ir.DataType.FLOAT)})
    model.graph.append(cast)
    output = cast.outputs[0]
    output.name, output.dtype, output.shape = f"{value.name}:float32", ir.DataType.FLOAT, value.shape
    return str(output.name)


def _bytes(value: Any, letters: Mapping[str, int]) -> int:
    """Of the value in float32; 0 where its shape is not said."""
    if value.shape is None:
        return 0
    sizes = [_size(dimension, letters) for dimension in value.shape]
    return 4 * int(np.prod(sizes, dtype=np.int64))


def _size(dimension: Any, letters: Mapping[str, int]) -> int:
    """192, "E", "U + 1", "w*h" -> numbers; 1 for another expression."""
    if isinstance(dimension, int):
        return dimension
    size = 1
    for factor in str(dimension.value or "").replace(" ", "").split("*"):
        letter, _, more = factor.partition("+")
        size *= int(letter) if letter.isdigit() else letters.get(letter, 1) + (int(more) if more.isdigit() else 0)
    return size


def _chunks(indices: list[int], sizes: list[int]) -> Iterator[list[int]]:
    """Of at most CHUNK_BYTES each, or one tensor."""
    chunk: list[int] = []
    for index in indices:
        if chunk and sum(sizes[i] for i in [*chunk, index]) > CHUNK_BYTES:
            yield chunk
            chunk = []
        chunk.append(index)
    if chunk:
        yield chunk
