"""The one reader of JSON that others wrote: what is taken means what it says, and what is refused is one sentence."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditedge.runtime.errors import BundleError, DitedgeError
from ditedge.runtime.json_files import MAX_DEPTH, parse_json, read_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | TEXT
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(2**63), 2**64 - 1)
)
DOCUMENTS = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5))  # fmt: skip


@settings(deadline=None)
@given(DOCUMENTS, st.booleans())
def test_what_json_can_say_is_read_as_it_is(document: object, ascii_only: bool) -> None:
    raw = json.dumps(document, ensure_ascii=ascii_only).encode()
    assert parse_json(raw, "x.json", BundleError) == document


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60) | st.text('[]{}",:0123456789eE+-. \\uDd8NaInfity', max_size=60).map(str.encode))
def test_anything_else_is_one_sentence(raw: bytes) -> None:
    try:
        parse_json(raw, "x.json", BundleError)
    except BundleError as error:
        assert str(error).startswith("x.json: ") and "\n" not in str(error)


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b'{"a": 1, "b": 2, "a": 3}', "key 'a' stands there twice"),
        (b'{"o": {"\\u001b[2J": 1, "\\u001b[2J": 1}}', r"key '\?\[2J' stands"),
        (b'{"beta": [1, NaN]}', "beta: a number that is not finite"),
        (b'{"a": {"b": [[-Infinity]]}}', "a.b: a number that is not finite"),
        (b"1e999", "not finite"),
        (b"9" * 5000, "not finite"),
        (b'{"name": "\\ud800"}', "name: a text that is not Unicode"),
        (b'{"\\udfff": 1}', "not Unicode"),
        (b"\xff\xfe", "not valid UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "not valid JSON"),
        (b"[" * 100_000, "deep|more values"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} deep"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} deep"),
        (b"[" + b"[]," * 99 + b"[]]", "more values"),
        (b'["' + b'","' * 100 + b'"]', "more values"),
        (b"[" + b"1," * 100 + b"1]", "more values"),
        (b"", "not valid JSON"),
        (b'{"a": 1} {}', "not valid JSON"),
    ],
)
def test_refusals(raw: bytes, complaint: str) -> None:
    with pytest.raises(BundleError, match=f"^x.json: .*({complaint})") as caught:
        parse_json(raw, "x.json", BundleError, values=100)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_brackets_in_texts_are_no_values() -> None:
    for text in ("[{" * 200, '"[' * 200, "\\[" * 200, '\\"{' * 200):
        assert parse_json(json.dumps([text]).encode(), "x", BundleError, values=100) == [text]
        with pytest.raises(BundleError, match="more values"):
            parse_json(json.dumps([text, [[]] * 200]).encode(), "x", BundleError, values=100)


def test_the_bounds_themselves_are_allowed() -> None:
    deepest = b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH
    assert parse_json(deepest, "x", BundleError) == json.loads(deepest)
    assert len(parse_json(b"[" + b"1," * 98 + b"1]", "x", BundleError, values=100)) == 99


def test_integers_beyond_64_bits_are_floats() -> None:
    found = parse_json(
        b"[9223372036854775807, 18446744073709551615, 18446744073709551616, 1" + b"0" * 300 + b"]", "x", BundleError
    )
    assert [type(number) for number in found] == [int, int, float, float] and math.isclose(found[3], 1e300)  # fmt: skip


def test_files_are_bounded_and_regular(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b" " * (1 << 20) + b"1")
    assert read_json(path, 2 << 20, BundleError) == 1
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    places = {path: r"larger than 1 MB", tmp_path: "not a file", tmp_path / "fifo": "not a file"}
    places |= {
        tmp_path / "none": "No such file",
        tmp_path / "loop": "cannot read",
        tmp_path / ("n" * 300): "cannot read",
    }
    for place, complaint in places.items():
        with pytest.raises(DitedgeError, match=complaint):
            read_json(place, 1 << 20, BundleError)
