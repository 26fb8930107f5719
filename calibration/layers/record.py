"""What comparing layers found: the first tensor beyond tolerance, the largest jump, a row for each layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ...runtime.bundle.open import Bundle
from ...runtime.loop.verify import LARGEST_ERROR
from ..formats import formats_of, half_format, quantised_format
from .pairing import Point

FLOAT32 = 1e-3  # another provider's float32: a deep network adds up the roundings of two orders of summation
MADE = ("context", "context_bias", "vector", "modulation")  # outputs of one graph that are inputs of another
SHOWN = 5  # tensors without a counterpart, named on screen


def tolerance_of(bundle: Bundle) -> float:
    """What a tensor's relative error may be: what its formats allow a trajectory's; a format of a later release, most.

    On the demo model, tensors are 0.007 off at most in fp16, 0.05 in bf16, 0.08 in int8 and 0.16 in int4.
    """
    quantization, precision = bundle.manifest.quantization, bundle.manifest.graphs["step"].precision
    allowed = [FLOAT32]
    if quantization is not None:
        known = quantization.precision in formats_of("quantize")
        schemes = quantised_format(quantization.precision).schemes if known else {}
        allowed.append(schemes[quantization.form].ceiling if quantization.form in schemes else LARGEST_ERROR)
    if precision != "float32":
        halves = (half_format(name) for name in formats_of("convert"))
        allowed.append(next((half.tolerance for half in halves if half.dtype == precision), LARGEST_ERROR))
    return max(allowed)


@dataclass(frozen=True)
class Side:
    """One of the two bundles."""

    name: str
    sha256: str  # of the manifest


@dataclass(frozen=True)
class Measured:
    """One tensor. error: ||b - a|| / ||a||; worst: max |b - a| / max |a|; both None where it could not be compared."""

    point: Point
    error: float | None
    worst: float | None
    reason: str  # why it could not be
    jump: float = 0.0  # error less the largest error of what it is computed from

    def fields(self) -> dict[str, Any]:
        """JSON-ready."""
        point = self.point
        names = {"tensor": point.tensor, "op": point.op, "layer": point.layer, "own": point.own}
        if self.error is None:
            return {**names, "reason": self.reason}
        return {**names, "counterpart": point.other, "error": self.error, "worst": self.worst, "jump": self.jump}


@dataclass(frozen=True)
class Row:
    """One layer: the largest error on the way to it, and those of its own output. None: nothing to compare."""

    layer: str
    before: float | None
    error: float | None
    worst: float | None
    jump: float


@dataclass(frozen=True)
class GraphLayers:
    """Every float tensor of one graph, in the order of computation."""

    graph: str
    tensors: list[Measured]

    @property
    def compared(self) -> list[Measured]:
        return [tensor for tensor in self.tensors if tensor.error is not None]

    def with_jumps(self, known: dict[str, float]) -> GraphLayers:
        """known: errors of the graph's inputs."""
        errors, found = dict(known), []
        for tensor in self.tensors:
            if tensor.error is not None:
                before = max((errors.get(name, 0.0) for name in tensor.point.sources), default=0.0)
                jump = 0.0 if math.isinf(before) else max(0.0, tensor.error - before)
                errors[tensor.point.tensor] = tensor.error
                tensor = replace(tensor, jump=jump)
            found.append(tensor)
        return replace(self, tensors=found)

    def rows(self) -> list[Row]:
        """One for each layer that has something to show, in the order of computation."""
        by_layer: dict[str, list[Measured]] = {}
        for tensor in self.compared:
            by_layer.setdefault(tensor.point.layer, []).append(tensor)
        rows = []
        for layer, tensors in by_layer.items():
            own = [tensor for tensor in tensors if tensor.point.own]
            before = [tensor.error for tensor in tensors if not tensor.point.own and tensor.error is not None]
            last = own[-1] if own else None
            rows.append(
                Row(
                    layer,
                    max(before, default=None),
                    last.error if last is not None else None,
                    last.worst if last is not None else None,
                    max(tensor.jump for tensor in tensors),
                )
            )
        return rows


@dataclass(frozen=True)
class Layers:
    """`verify --layers`: bundle b against the float32 bundle a."""

    a: Side
    b: Side
    how: str  # what computed b: a provider or a target
    what: str  # which step
    tolerance: float
    measured: list[GraphLayers]
    same: list[str]  # graphs that are the same file in both

    @cached_property
    def graphs(self) -> list[GraphLayers]:
        """With jumps. What `context` makes, conditioner and step read, and what the conditioner makes, the step."""
        found, known = [], dict[str, float]()
        for graph in self.measured:
            found.append(graph.with_jumps(known))
            known |= {t.point.tensor: t.error for t in graph.compared if t.point.tensor in MADE and t.error}
        return found

    @property
    def compared(self) -> list[tuple[str, Measured]]:
        """(graph, tensor), in the order of computation."""
        return [(graph.graph, tensor) for graph in self.graphs for tensor in graph.compared]

    @property
    def unmatched(self) -> list[tuple[str, Measured]]:
        return [(graph.graph, tensor) for graph in self.graphs for tensor in graph.tensors if tensor.error is None]

    @property
    def first_beyond(self) -> tuple[str, Measured] | None:
        return next(((g, t) for g, t in self.compared if not (t.error or 0) <= self.tolerance), None)

    @property
    def largest_jump(self) -> tuple[str, Measured] | None:
        """On the way to the last layer: behind it, guidance multiplies every error. None where nothing differs."""
        jumps = [
            (graph.graph, tensor)
            for graph in self.graphs
            for tensor in graph.compared
            if tensor.jump > 0 and tensor.point.layer != graph.tensors[-1].point.layer
        ]
        return max(jumps, key=lambda entry: entry[1].jump, default=None)

    @property
    def passed(self) -> bool:
        return self.first_beyond is None

    def sentences(self) -> Iterator[str]:
        """The findings, for people."""
        first, jump = self.first_beyond, self.largest_jump
        count = len(self.compared)
        if first is None:
            yield f"passed: {count} tensors within {self.tolerance:g}"
        else:
            graph, tensor = first
            yield f"FAILED: first beyond {self.tolerance:g}: {graph}, {tensor.point.place}: {tensor.error:.2e}"
        if jump is not None:
            graph, tensor = jump
            yield f"largest jump: {graph}, {tensor.point.place}: by {tensor.jump:.2e} to {tensor.error:.2e}"
        if self.same:
            yield f"the same file in both: {', '.join(self.same)}"

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"{self.b.name} ({self.how}) against {self.a.name} in float32, {self.what}"
        for graph in self.graphs:
            yield f"{graph.graph:34} {'on the way':>10} {'error':>10} {'worst':>10} {'jump':>10}"
            for row in graph.rows():
                numbers = " ".join(f"{shown(value):>10}" for value in (row.before, row.error, row.worst, row.jump))
                yield f"  {row.layer:32} {numbers}"
        yield from self.sentences()
        reasons: dict[str, list[str]] = {}
        for name, tensor in self.unmatched:
            reasons.setdefault(tensor.reason, []).append(f"{name}'s {tensor.point.tensor}")
        for reason, names in reasons.items():
            more = f" and {len(names) - SHOWN} more (all with --json)" if len(names) > SHOWN else ""
            yield f"not compared, {reason}: {', '.join(names[:SHOWN])}{more}"

    def summary(self) -> dict[str, Any]:
        """JSON-ready."""
        first, jump = self.first_beyond, self.largest_jump
        return {
            "reference": self.a.name,
            "reference_sha256": self.a.sha256,
            "bundle": self.b.name,
            "bundle_sha256": self.b.sha256,
            "computed_by": self.how,
            "step": self.what,
            "tolerance": self.tolerance,
            "passed": self.passed,
            "first_beyond": None if first is None else {"graph": first[0], **first[1].fields()},
            "largest_jump": None if jump is None else {"graph": jump[0], **jump[1].fields()},
            "same": self.same,
            "graphs": {graph.graph: [tensor.fields() for tensor in graph.tensors] for graph in self.graphs},
        }


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"
