"""Hostile documents from true ones. Whoever has the seed can make each again."""

from __future__ import annotations

import copy
import io
import json
import math
import zipfile
from random import Random
from typing import Any

NUMBERS = [
    *(0, 1, -1, 2, 3, 4, 7, 8, 9, 16, 17, 64, 65, 100, 101, 1000, 1001, 65_536, 65_537, 100_000, 100_001, 131_072),
    *(131_073, 1_000_000, 1_000_001, 2**24, 2**24 + 1, 2**26, 2**28, 2**30, 2**31 - 1, 2**31, 2**32, 2**53 + 1),
    *(2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 10**300, -(2**31), -(2**63), -(2**63) - 1),
    *(0.0, -0.0, 1.0, 10.0, 0.5, 0.999, 1e-8, 1e-45, 5e-324, 3.0e38, 3.1e38, -3.0e38, 1e300, -1e300, 1e17),
    *(math.nan, math.inf, -math.inf),
]
TEXTS = [
    *(
        "",
        " ",
        "0",
        "1",
        "10",
        "-1",
        "1e3",
        "NaN",
        "true",
        "null",
        ".",
        "..",
        "../x",
        "/etc/hostname",
        "a/../b",
        "a\\b",
    ),
    *("a\0b", "\ud800", "\U0001f600", "\u202e", "\x1b[2J\n", "[bold red]", "%s%n", "${x}", "x" * 300, "é" * 5000),
    *(
        "step",
        "decoder",
        "float16",
        "uint8",
        "cosine",
        "given",
        "scaled_linear",
        "v",
        "x0",
        "flow",
        "flow-to-data",
        "ddpm",
    ),
    *("ddim", "dpm++", "euler", "learned", "karras", "ddim50", "10,10", "leading", "tensorrt-rtx", "int8", "static"),
]
OTHERS: list[Any] = [None, True, False, [], {}, [[]], [{}], [0], [0, 1], {"a": 1}, [None], [1.0] * 3, ["x"] * 3]
MANY: list[Any] = [
    [0] * 1001,
    [0.5] * 100_001,
    [[0]] * 5000,
    ["x"] * 1001,
    {f"k{i}": 0 for i in range(1001)},
    "x" * 10**6,
]
RAW = {  # what json.dumps would not write; each stands for its key, a text that no document has
    **{"\ue000": "[" * 40 + "]" * 40, "\ue001": "[" * 5000 + "]" * 5000, "\ue002": '{"a":' * 33 + "1" + "}" * 33},
    **{"\ue003": "9" * 5000, "\ue004": "1e400", "\ue005": "-1e-400", "\ue006": "-0", "\ue007": "1E5", "\ue008": "01"},
    **{
        "\ue009": "1.",
        "\ue00a": "0x10",
        "\ue00b": '"\\ud800"',
        "\ue00c": '"\\u0000"',
        "\ue00d": '"\\q"',
        "\ue00e": '"\t"',
    },
}
PIECES = [
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"1",
    b"e",
    b"-",
    b"\xed\xa0\x80",
    b"//",
    b"\n",
]

Place = tuple[Any, Any]  # a dict or list, and a key of it


def mutated_json(random: Random, document: Any) -> bytes:
    """A JSON text that differs from `document` in a few places, by value, by structure or by its letters."""
    root = [copy.deepcopy(document)]
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 5))):
        mutate(random, root)
    text = json.dumps(root[0], ensure_ascii=random.random() < 0.7, indent=random.choice((None, 1)))
    for mark, raw in RAW.items():
        text = text.replace(json.dumps(mark), raw).replace(f'"{mark}"', raw)
    if random.random() < 0.05:
        text = _with_a_key_twice(random, text)
    data = text.encode("utf-8", "surrogatepass")
    return mutated_bytes(random, data) if random.random() < 0.15 else data


def mutate(random: Random, root: list[Any]) -> None:
    """One change somewhere in root[0], a tree of dicts and lists."""
    places = _places(root)
    at, key = random.choice(places)
    kind = random.randrange(12)
    if kind < 3:
        at[key] = hostile(random)
    elif kind < 6:
        at[key] = _neighbour(random, at[key])
    elif kind == 6 and at is not root:
        del at[key]
    elif kind == 7:
        other, name = random.choice(places)
        at[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(at[key])
    elif kind == 8:
        other, name = random.choice(places)
        at[key] = copy.deepcopy(other[name])
    elif kind == 9 and isinstance(at, dict):
        at[random.choice([*TEXTS, f"{key}x"])] = at.pop(key)
    elif isinstance(at[key], list) and at[key]:
        _resize(random, at[key])
    elif isinstance(at[key], dict):
        at[key][random.choice(TEXTS)] = hostile(random)


def hostile(random: Random) -> Any:
    """A value that may be anything."""
    kinds = (NUMBERS, NUMBERS, TEXTS, OTHERS, list(RAW))
    return copy.deepcopy(random.choice(MANY if random.random() < 0.02 else random.choice(kinds)))


def mutated_bytes(random: Random, raw: bytes) -> bytes:
    """Bits turned, bytes put in, taken out, repeated, cut off."""
    data = bytearray(raw)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        start = random.randrange(len(data) + 1)
        length = random.choice((1, 1, 2, 4, 8, 64))
        kind = random.randrange(6)
        if kind == 0 and start < len(data):
            data[start] ^= 1 << random.randrange(8)
        elif kind == 1:
            data[start:start] = random.choice(PIECES)
        elif kind == 2:
            del data[start : start + length]
        elif kind == 3:
            data[start : start + length] = random.randbytes(len(data[start : start + length]))
        elif kind == 4:
            data[start:start] = data[start : start + length] * random.choice((1, 3, 100))
        elif random.random() < 0.3:
            del data[start:]
    return bytes(data)


def _places(root: list[Any]) -> list[Place]:
    """Everything that can be changed; of a long list of numbers only the first eight."""
    places: list[Place] = []
    waiting: list[Any] = [root]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(min(len(node), 8))
        places += [(node, key) for key in keys]
        waiting += [node[key] for key in keys if isinstance(node[key], (dict, list))]
    return places


def _neighbour(random: Random, value: Any) -> Any:
    """A value that is nearly the old one, so that most of the document still makes sense."""
    if isinstance(value, bool) or value is None:
        return random.choice([True, False, None, 0, 1])
    if isinstance(value, int):
        return random.choice([value + 1, value - 1, -value, 2 * value, float(value), str(value), value + 2**31])
    if isinstance(value, float):
        return random.choice([value / 2, -value, value * 1e10, str(value), int(value) if math.isfinite(value) else 0])
    if isinstance(value, str):
        return random.choice([value + "x", value[:-1], value.upper(), value[::-1], [value], random.choice(TEXTS)])
    if isinstance(value, (list, dict)):
        return random.choice([None, [value], list(value), dict.fromkeys(map(str, value), 1) if len(value) < 99 else {}])
    return [value]


def _resize(random: Random, values: list[Any]) -> None:
    kind = random.randrange(4)
    if kind == 0:
        values.pop(random.randrange(len(values)))
    elif kind == 1:
        values.append(copy.deepcopy(random.choice(values)))
    elif kind == 2:
        values *= random.choice((2, 9, 20)) if len(values) < 1000 else 1
    else:
        random.shuffle(values)


def _with_a_key_twice(random: Random, text: str) -> str:
    starts = [at for at, letter in enumerate(text) if letter == "{"]
    if not starts:
        return text
    at = random.choice(starts) + 1
    key = random.choice(["version", "name", "format", "file", "sha256", "\\u0076ersion"])
    return f'{text[:at]}"{key}": 1, {text[at:]}'


def mutated_safetensors(random: Random, raw: bytes) -> bytes:
    """Another header of the same tensors, with its length, or other bytes."""
    if random.random() < 0.2:
        return mutated_bytes(random, raw)
    end = 8 + int.from_bytes(raw[:8], "little")
    header = mutated_json(random, json.loads(raw[8:end]))
    length = len(header) if random.random() < 0.9 else random.choice([0, 1, 1 << 40, (1 << 64) - 1, len(raw)])
    return length.to_bytes(8, "little") + header + raw[end:]


def mutated_zip(random: Random, raw: bytes) -> bytes:
    """A zip file of which one member has other bytes or another name; what it is no zip of is changed as bytes."""
    if random.random() < 0.3 or not zipfile.is_zipfile(io.BytesIO(raw)):
        return mutated_bytes(random, raw)
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(stream, "w") as new:
        small = [info for info in old.infolist() if info.file_size < 10_000]
        chosen = random.choice(small)
        for info in old.infolist():
            data = old.read(info)
            if info is chosen:
                data = mutated_bytes(random, data)
            if random.random() < 0.02:
                info.filename = random.choice(["../x", "", "data.pkl", f"{info.filename}x", "a/" * 500])
            new.writestr(info, data)
    return stream.getvalue()
