"""JSON that somebody else wrote: bounded before it is parsed, and every mistake is one sentence with file and place.

The rules are those of the C++ runtime (cpp/src/json.cpp) and stand in docs/format.md, "Limits": UTF-8 without a
byte order mark, so many bytes, values and levels, no key twice, finite numbers; an integer beyond 64 bits is a float.
"""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from .errors import DitedgeError

MAX_CONFIG_BYTES = 16 << 20  # of a config.json or scheduler_config.json
MAX_VALUES = 1 << 20
MAX_DEPTH = 32  # objects and lists inside one another
_MANY = "more values than such a file has"
_Model = TypeVar("_Model", bound=BaseModel)


class _Refused(ValueError):
    """Why a text that may be JSON is not taken."""


def read_json(path: Path, limit: int, error: type[DitedgeError], values: int = MAX_VALUES) -> Any:
    """A JSON file of at most `limit` bytes and `values` values. Raises `error`."""
    return parse_json(read_bounded(path, limit, error), path, error, values)


def read_bounded(path: Path, limit: int, error: type[DitedgeError]) -> bytes:
    """A whole regular file of at most `limit` bytes. Raises `error`."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise error(f"cannot read {path}: not a file")
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except (OSError, ValueError) as reason:  # ValueError: a NUL in the path
        raise error(f"cannot read {path}: {getattr(reason, 'strerror', None) or reason}") from None
    if len(raw) > limit:
        raise error(f"{path}: larger than {_size(limit)}")
    return raw


def parse_json(raw: bytes, place: Path | str, error: type[DitedgeError], values: int = MAX_VALUES) -> Any:
    """At most `values` objects, lists, texts and numbers. `place` is only for the message. Raises `error`."""
    try:
        many = raw.count(b"[") + raw.count(b"{") > values
        if many and _containers(raw) > values:  # before it is parsed: each would be a Python object
            raise _Refused(_MANY)
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=_object, parse_int=_integer)
        _check(data, values)
    except _Refused as reason:
        raise error(f"{place}: {reason}") from None
    except UnicodeDecodeError:
        raise error(f"{place}: not valid UTF-8 text") from None
    except RecursionError:
        raise error(f"{place}: nested more than {MAX_DEPTH} deep") from None
    except ValueError as reason:
        raise error(f"{place}: not valid JSON ({reason})") from None
    return data


def validated(
    model: type[_Model], data: Any, place: Path | str, error: type[DitedgeError], remedy: str = "", field: str = ""
) -> _Model:
    """`data`, which is `field` of a file, as a pydantic model. Raises `error`: the first complaint and the remedy."""
    try:
        return model.model_validate(data)
    except ValidationError as reason:
        first = reason.errors(include_url=False, include_input=False)[0]
        where = ".".join(_short(str(part)) for part in [*filter(None, [field]), *first["loc"]])
        parts = [str(place), where, first["msg"].removeprefix("Value error, "), remedy]
        raise error(": ".join(filter(None, parts))) from None


def _containers(raw: bytes) -> int:
    """Lists and objects that begin in a JSON text, up to its first mistake: brackets in its texts are not counted."""
    letters = np.frombuffer(raw.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    inside = np.logical_xor.accumulate(letters == ord('"'))
    return int(np.count_nonzero(~inside & ((letters == ord("[")) | (letters == ord("{")))))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        again = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Refused(f"key '{_short(again)}' stands there twice")
    return found


def _integer(digits: str) -> int | float:
    value = int(digits) if len(digits) <= 20 else float(digits)  # Python's own limit of digits comes too late
    return value if -(2**63) <= value < 2**64 else float(value)


def _check(data: Any, left: int) -> None:
    """At most `left` values, depth, finite numbers and well-formed text, without recursion. Raises _Refused."""
    waiting: list[tuple[Any, str, int]] = [(data, "", 1)]
    while waiting:
        value, where, depth = waiting.pop()
        table = isinstance(value, list) and _is_table(value)
        left -= 1 + (len(value) if table else 0)
        if len(waiting) > left:
            raise _Refused(_MANY)
        if isinstance(value, dict | list) and depth > MAX_DEPTH:
            raise _Refused(f"nested more than {MAX_DEPTH} deep")
        if isinstance(value, dict):
            for key in value:
                _check_text(key, where)
            waiting += [
                (item, f"{where}.{_short(key)}" if where else _short(key), depth + 1) for key, item in value.items()
            ]
        elif table:
            _check_finite(value, where)
        elif isinstance(value, list):
            waiting += [(item, where, depth + 1) for item in value]
        elif isinstance(value, str):
            _check_text(value, where)
        elif isinstance(value, float):
            _check_finite([value], where)


def _is_table(values: list[Any]) -> bool:
    """Numbers only: checked at once, since tables are long."""
    return set(map(type, values)) <= {float, int}


def _check_finite(numbers: list[float], where: str) -> None:
    if not all(map(math.isfinite, numbers)):
        raise _Refused(f"{where}{': ' if where else ''}a number that is not finite")


def _check_text(text: str, where: str) -> None:
    """Lone surrogates are no characters: nothing can print or encode them."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise _Refused(f"{where}{': ' if where else ''}a text that is not Unicode")


def _short(key: str) -> str:
    """A key for a message: printable, and not longer than a line."""
    if len(key) <= 60 and key.isprintable():
        return key
    shown = "".join(letter if letter.isprintable() else "?" for letter in key[:60])
    return f"{shown}..." if len(key) > 60 else shown


def _size(limit: int) -> str:
    return f"{limit >> 20} MB" if limit >= 1 << 20 else f"{limit >> 10} kB"
