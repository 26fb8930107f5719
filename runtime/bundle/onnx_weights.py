"""An ONNX file whose weights in other files are already in memory: the same graph, naming addresses instead.

ONNX Runtime and OpenVINO both know `*/_ORT_MEM_ADDR_/*` for the name of a file; the offset is then an address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ..errors import BundleError
from .onnx_files import varint

IN_MEMORY = b"*/_ORT_MEM_ADDR_/*"
INITIALIZERS = (
    7,
    5,
)  # ModelProto.graph, GraphProto.initializer: no other tensor may be in another file (onnx_files.py)
EXTERNAL_DATA = 13  # of TensorProto: entries of key (1) and value (2)


def weights_in_memory(model: bytes, places: Mapping[str, tuple[int, int]], path: Path) -> bytes:
    """The model, with weights at addresses. model: as `read_onnx` took it. places: location -> (address, bytes).

    Raises BundleError, naming `path`, where a weight lies outside its file.
    """

    def moved(tensor: bytes) -> bytes:
        fields = list(_fields(tensor))
        entries = [dict(_texts(tensor[first:last])) for number, _, first, last in fields if number == EXTERNAL_DATA]
        if not entries:
            return tensor
        found = {entry.get(1, b""): entry.get(2, b"") for entry in entries}
        kept = b"".join(tensor[start:last] for number, start, _, last in fields if number != EXTERNAL_DATA)
        return kept + _entries(*_place(found, places, path))

    return _changed(model, INITIALIZERS, moved)


def _place(found: dict[bytes, bytes], places: Mapping[str, tuple[int, int]], path: Path) -> tuple[int, int]:
    """(address, bytes) of one tensor."""
    location = found.get(b"location", b"").decode("utf-8", "replace")
    if location not in places:
        raise BundleError(f"{path}: a weight is said to be in another file, and not in which")
    address, size = places[location]
    numbers = [found.get(b"offset", b"0"), found.get(b"length", b"")]
    if not all(text.isdigit() and len(text) < 20 for text in numbers if text):
        raise BundleError(f"{path}: the place of a weight is no number")
    offset = int(numbers[0] or b"0")
    length = int(numbers[1] or str(max(0, size - offset)))
    if offset + length > size:
        raise BundleError(f"{path}: a weight lies beyond the end of {location!r}")
    return address + offset, length


def _entries(address: int, length: int) -> bytes:
    pairs = ((b"location", IN_MEMORY), (b"offset", b"%d" % address), (b"length", b"%d" % length))
    return b"".join(_text(EXTERNAL_DATA, _text(1, key) + _text(2, value)) for key, value in pairs)


def _changed(message: bytes, path: tuple[int, ...], change: Callable[[bytes], bytes]) -> bytes:
    """A protobuf message, with `change` made to every message that the numbers of fields in `path` lead to."""
    if not path:
        return change(message)
    return b"".join(
        _text(number, _changed(message[first:last], path[1:], change)) if number == path[0] else message[start:last]
        for number, start, first, last in _fields(message)
    )


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(number, first byte of its tag, first byte, byte after the last) of every field."""
    at = 0
    while at < len(message):
        start = at
        tag, first = varint(message, at)
        value, at = varint(message, first) if tag & 7 in (0, 2) else (0, first + (8 if tag & 7 == 1 else 4))
        if tag & 7 == 2:
            first, at = at, at + value
        yield tag >> 3, start, first, at


def _texts(message: bytes) -> Iterator[tuple[int, bytes]]:
    return ((number, message[first:last]) for number, _, first, last in _fields(message))


def _text(number: int, contents: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(contents)) + contents


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
