"""What is read of an ONNX file without an engine: its tensors, and which other files its weights are in.

A bounded reader of the protobuf (onnx.proto) that passes over all else, like the C++ runtime's (onnx_graph.cpp): the
rules are in docs/format.md, "Reading a bundle".
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import BundleError
from .graph_contract import MAX_RANK, MAX_TENSORS, Tensor
from .manifest import MAX_FILES

MAX_DEPTH = 32  # of messages: a graph in an attribute of a node of a graph is three
MAX_FIELDS = 4_000_000  # DiT-XL has some 50,000
DTYPES = {1: "float32", 2: "uint8", 7: "int64"}
Buffer = bytes | mmap.mmap

# Where tensors can be in a model: message -> {number of the field: message}.
EDGES = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "tensor": {},
}


@dataclass
class OnnxFile:
    """inputs, outputs: of the main graph. locations: of external data, as the file names them."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    locations: set[str] = field(default_factory=set)


class _Refused(ValueError):
    """Why a file is not taken."""


def read_onnx(data: Buffer, path: Path) -> OnnxFile:
    """Raises BundleError; `path` is only for the message."""
    try:
        return _Reader(data).read()
    except _Refused as error:
        raise BundleError(f"{path}: {error}") from None
    except IndexError:  # it ends within a number
        raise BundleError(f"{path}: not an ONNX graph") from None


class _Reader:
    def __init__(self, data: Buffer) -> None:
        self._data, self._left, self._found = data, MAX_FIELDS, OnnxFile()

    def read(self) -> OnnxFile:
        self._walk(0, len(self._data), "model", 0)
        return self._found

    def _walk(self, start: int, end: int, kind: str, depth: int) -> None:
        """depth 0: the model, 1: its graph, 2: the graph's initializers."""
        if depth > MAX_DEPTH:
            raise _Refused(f"nested more than {MAX_DEPTH} deep")
        edges = EDGES[kind]
        for number, first, last in self._messages(start, end):
            if number in edges:
                self._walk(first, last, edges[number], depth + 1)
            elif kind == "tensor" and number == 13:
                self._external(first, last, depth == 2)
            elif kind == "node" and number == 4 and self._data[first:last] == b"EPContext":
                raise _Refused("a node that loads another engine's file is not for a bundle")
            elif kind == "graph" and depth == 1 and number in (11, 12):
                tensors = self._found.inputs if number == 11 else self._found.outputs
                tensors.append(self._tensor(first, last))
                if len(tensors) > MAX_TENSORS:
                    raise _Refused(f"has more than {MAX_TENSORS} inputs or outputs")

    def _external(self, start: int, end: int, initializer: bool) -> None:
        """One key and value of a tensor's external data."""
        entry = {number: self._text(first, last) for number, first, last in self._messages(start, end)}
        if entry.get(1) != "location":
            return
        location = entry.get(2, "")
        if not initializer:
            raise _Refused(f"only the weights of the graph itself may be in another file, {location[:200]!r}")
        self._found.locations.add(location)
        if len(self._found.locations) > MAX_FILES:
            raise _Refused(f"weights are in more than {MAX_FILES} other files")

    def _tensor(self, start: int, end: int) -> Tensor:
        """ValueInfoProto: name 1, type 2: tensor_type 1: elem_type 1, shape 2: dim 1: dim_value 1."""
        name, element, shape = "", 0, None
        for number, first, last in self._messages(start, end):
            if number == 1:
                name = self._text(first, last)[:200]
            for kind, begin, end in self._messages(first, last) if number == 2 else ():
                if kind == 1:
                    element, shape = self._tensor_type(begin, end, element, shape)
        if element not in DTYPES or shape is None:  # a text, a sequence, a map ...
            raise _Refused(f"tensor {name!r} is of a type or rank that no graph of a bundle has")
        return Tensor(name, DTYPES[element], tuple(shape))

    def _tensor_type(
        self, start: int, end: int, element: int, shape: list[int | None] | None
    ) -> tuple[int, list[int | None] | None]:
        for number, first, last in self._fields(start, end):
            if number == 1 and last < 0:
                element = first
            elif number == 2 and last >= 0:
                shape = [] if shape is None else shape
                shape += [self._dimension(*place) for kind, *place in self._messages(first, last) if kind == 1]
                if len(shape) > MAX_RANK:
                    raise _Refused(f"a tensor has more than {MAX_RANK} dimensions")
        return element, shape

    def _dimension(self, start: int, end: int) -> int | None:
        sizes = [first for number, first, last in self._fields(start, end) if number == 1 and last < 0]
        return sizes[-1] if sizes else None

    def _text(self, first: int, last: int) -> str:
        return self._data[first : min(last, first + 4096)].decode("utf-8", "replace")

    def _messages(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(number, first byte, byte after the last) of every text and message."""
        return (place for place in self._fields(start, end) if place[2] >= 0)

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """As `_messages`, and (number, value, -1) of every integer."""
        while start < end:
            self._left -= 1
            if self._left < 0:
                raise _Refused(f"has more than {MAX_FIELDS} fields")
            tag, start = varint(self._data, start)
            kind, value = tag & 7, 0
            if kind == 0:
                value, start = varint(self._data, start)
                yield tag >> 3, value, -1
            elif kind == 2:
                value, start = varint(self._data, start)
                if start + value > end:
                    raise _Refused("not an ONNX graph")
                yield tag >> 3, start, start + value
                start += value
            elif kind in (1, 5):
                start += 8 if kind == 1 else 4
            else:
                raise _Refused("not an ONNX graph")
        if start > end:
            raise _Refused("not an ONNX graph")


def varint(data: Buffer, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends. Raises ValueError; IndexError where the data ends."""
    if data[at] < 0x80:  # nearly all are one byte
        return data[at], at + 1
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if shift > 63:
            raise _Refused("not an ONNX graph")
