"""The C interface: requests, structs, buffers, class names, words."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from capi_ctypes import DitedgeError, Info, Params, load

from ditedge.runtime import open_bundle
from ditedge.runtime.errors import RequestError
from tests.conftest import ROOT
from tests.cpp.support import ARGUMENT, BUNDLE, PROGRAM, REQUEST, edit


def test_numbers_that_float32_cannot_hold(opened, gray_bundle: Path, tmp_path: Path) -> None:
    handle = opened(gray_bundle)
    for guidance in (1e300, -1e300, float("inf"), 3.5e38, 3.1e38):  # Python's limit
        with pytest.raises(DitedgeError, match="guidance .* is not a number up to 3e38") as caught:
            handle.generate([1], [1], guidance=guidance)
        assert caught.value.status == REQUEST
    program = json.loads((gray_bundle / "programs" / "ddim-25.json").read_text())
    for key in ("init", "timestep", "mix", "guidance"):
        damaged = json.loads(json.dumps(program))
        row = damaged
        while not isinstance(row[key], float | int):
            row, key = row[key], 0
        row[key] = 1e300
        (tmp_path / "p.json").write_text(json.dumps(damaged))
        with pytest.raises(DitedgeError, match="within") as caught:
            handle.generate([1], [1], program_file=str(tmp_path / "p.json").encode())
        assert caught.value.status == PROGRAM


def test_what_is_given_out_is_nothing_on_failure(built: Path, gray_bundle: Path) -> None:
    library, handle, number = load(built / "libditedge.so"), ctypes.c_void_p(7), ctypes.c_int64(7)
    assert library.ditedge_bundle_open(None, 1, ctypes.byref(handle)) == ARGUMENT and handle.value is None
    handle = ctypes.c_void_p(7)
    assert library.ditedge_bundle_open(b"/nowhere", 1, ctypes.byref(handle)) == BUNDLE and handle.value is None
    handle = ctypes.c_void_p(7)
    assert library.ditedge_session_open(None, None, ctypes.byref(handle)) == ARGUMENT and handle.value is None
    bundle = ctypes.c_void_p()
    assert library.ditedge_bundle_open(os.fsencode(gray_bundle), 1, ctypes.byref(bundle)) == 0
    for call, nothing in (
        (lambda: library.ditedge_program_steps(bundle, b"nope", ctypes.byref(number)), 0),
        (lambda: library.ditedge_program_steps(None, None, ctypes.byref(number)), 0),
        (lambda: library.ditedge_program_file_steps(b"/nowhere", ctypes.byref(number)), 0),
        (lambda: library.ditedge_find_class(bundle, b"nope", ctypes.byref(number)), -1),
        (lambda: library.ditedge_find_class(None, None, ctypes.byref(number)), -1),
    ):
        number.value = 7
        assert call() != 0 and number.value == nothing
    info = Info(size=ctypes.sizeof(Info), num_classes=7)
    assert library.ditedge_bundle_info(None, ctypes.byref(info)) == ARGUMENT
    assert info.size == ctypes.sizeof(Info) and info.num_classes == 0
    library.ditedge_bundle_close(bundle)


def test_structs_end_where_a_field_ends(opened, golden_bundle) -> None:
    """Half a pointer is never followed."""
    handle, raw = opened(golden_bundle("gray1_cfg")), Params()
    ends = {getattr(Params, name).offset for name, *_ in Params._fields_[1:]} | {ctypes.sizeof(Params)}
    for size in range(ctypes.sizeof(Params) + 9):
        status = handle.c.ditedge_params_init(ctypes.byref(raw), ctypes.c_size_t(size))
        assert status == (0 if size in ends else ARGUMENT), size
    image, label, seed = np.zeros(64, np.uint8), np.array([1]), np.array([1], np.uint64)
    handle.c.ditedge_params_init(ctypes.byref(raw), ctypes.c_size_t(ctypes.sizeof(raw)))
    raw.count, raw.labels, raw.seeds, raw.size = 1, label.ctypes.data, seed.ctypes.data, Params.seeds.offset + 4
    run = handle.c.ditedge_generate_images
    assert run(handle.session, ctypes.byref(raw), ctypes.c_void_p(image.ctypes.data), ctypes.c_size_t(64)) == ARGUMENT


def test_versions_agree(built: Path) -> None:
    library = load(built / "libditedge.so")
    header = (ROOT / "runtime/cpp/include/ditedge.h").read_text()
    major, minor, patch = (
        int(re.search(rf"#define DITEDGE_VERSION_{part} (\d+)", header)[1]) for part in ("MAJOR", "MINOR", "PATCH")
    )
    project = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert library.ditedge_version().decode() == f"{major}.{minor}.{patch}" == project
    assert library.ditedge_version_number() == major * 10000 + minor * 100 + patch


@pytest.mark.parametrize(
    ("fields", "status", "complaint"),
    [
        ({"given": [11]}, REQUEST, "class 11"),
        ({"given": [-2]}, REQUEST, "class -2"),
        ({"program": b"nope"}, REQUEST, "no program 'nope'"),
        ({"program_file": b"/nonexistent"}, PROGRAM, "cannot read /nonexistent: No such file or directory"),
        ({"program_file": b"/"}, PROGRAM, "cannot read /: not a file"),
        ({"program": b"ddim-25", "program_file": b"x"}, ARGUMENT, "not both"),
        ({"guidance": float("inf")}, REQUEST, "is not a number up to 3e38"),
        ({"batch": 0}, ARGUMENT, "batch"),
        ({"count": 2**62}, ARGUMENT, "count"),
        ({"count": 0}, ARGUMENT, "count"),
        ({"step_noise": 8}, ARGUMENT, "initial_noise is not"),
        ({"size": 10_000}, ARGUMENT, "version"),
    ],
)
def test_bad_requests(opened, golden_bundle, fields: dict, status: int, complaint: str) -> None:
    fields = dict(fields)
    given = fields.pop("given", [1])
    with pytest.raises(DitedgeError, match=complaint) as caught:
        opened(golden_bundle("gray1_cfg")).generate(given, [1], **fields)
    assert caught.value.status == status


def test_an_older_callers_smaller_struct_is_left_alone(built: Path) -> None:
    library, raw = (
        load(built / "libditedge.so"),
        (ctypes.c_ubyte * ctypes.sizeof(Params))(*[0xAA] * ctypes.sizeof(Params)),
    )
    older = Params.guidance.offset + 8
    assert library.ditedge_params_init(ctypes.byref(raw), ctypes.c_size_t(older)) == 0
    assert int.from_bytes(bytes(raw)[:8], "little") == older
    assert set(bytes(raw)[older:]) == {0xAA}


def test_buffers_of_the_wrong_size_are_refused(opened, golden_bundle) -> None:
    handle, params = opened(golden_bundle("gray1_cfg")), Params()
    label, seed, image = np.array([1]), np.array([1], np.uint64), np.zeros(64, np.uint8)
    handle.c.ditedge_params_init(ctypes.byref(params), ctypes.c_size_t(ctypes.sizeof(params)))
    params.count, params.labels, params.seeds = 1, label.ctypes.data, seed.ctypes.data
    run = handle.c.ditedge_generate_images
    for size, status in ((63, ARGUMENT), (65, ARGUMENT), (0, ARGUMENT), (64, 0)):
        assert (
            run(handle.session, ctypes.byref(params), image.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(size))
            == status
        )


def test_classes_by_exact_name_then_number_then_name(built: Path, gray_bundle: Path) -> None:
    """As Python's Bundle.label, its sentences, too: a class may be called 1990."""
    names = ["boot", "1990", "Bag, Sack", "7", "BOOT", "x", "x", "4", "4", "c"]
    edit(gray_bundle, labels=names)
    library, handle, label = load(built / "libditedge.so"), ctypes.c_void_p(), ctypes.c_int64()
    assert library.ditedge_bundle_open(os.fsencode(gray_bundle), 1, ctypes.byref(handle)) == 0
    python = open_bundle(gray_bundle)

    def found(text: str) -> int | str:
        status = library.ditedge_find_class(handle, text.encode(), ctypes.byref(label))
        assert (status, label.value >= 0) in ((0, True), (REQUEST, False))
        return label.value if status == 0 else library.ditedge_last_error().decode()

    known = {"boot": 0, "BOOT": 4, "1990": 1, "7": 3, "5": 5, "4": 4, "0": 0, "sack": 2, " Bag, sack": 2, "C": 9}
    assert {text: found(text) for text in known} == known == {text: python.label(text) for text in known}
    for text in ("Boot", "x", "10", "1991", "9" * 30, "", " ", "-1", "1.5", "9 ", "\u0661", "b\u00f6\u00f6t"):
        with pytest.raises(RequestError) as caught:
            python.label(text)
        assert found(text) == str(caught.value), text
    library.ditedge_bundle_close(handle)
    edit(gray_bundle, labels=[])
    assert library.ditedge_bundle_open(os.fsencode(gray_bundle), 1, ctypes.byref(handle)) == 0
    assert found("9") == 9 and found("boot") == "class 'boot' is unknown: give a number, 0 to 9"
    library.ditedge_bundle_close(handle)


@pytest.mark.parametrize("letter", ["9", "\u00e9", "\u20ac", "\U0001f600"])
def test_a_long_text_hides_no_remedy(opened, golden_bundle, letter: str) -> None:
    """A message keeps both its ends and whole characters; what could command a terminal is shown as question marks."""
    handle = opened(golden_bundle("gray1_cfg"))
    for length in range(5000, 5005):
        with pytest.raises(DitedgeError, match=r"^no program '9*.* \.\.\. .*' in the bundle; it has ddim-") as caught:
            handle.generate([1], [1], program=b"9" * (length % 5) + letter.encode() * length)
        assert 990 <= len(handle.c.ditedge_last_error()) <= 1000
        assert handle.c.ditedge_last_error().decode() == str(caught.value)  # whole characters
    with pytest.raises(DitedgeError, match=r"^no program '\?\[31m\?\?2J\? \u00e9' in"):
        handle.generate([1], [1], program="\x1b[31m\x9b2J\x7f \u00e9".encode())


def test_the_header_is_c90(headers: Path, tmp_path: Path) -> None:
    (tmp_path / "h.c").write_text("#include <ditedge.h>\nint main(void) { ditedge_params p; return p.size == 0; }\n")
    strict = ["-std=c90", "-pedantic-errors", "-Wall", "-Wextra", "-Werror", "-Wno-uninitialized", "-fsyntax-only"]
    subprocess.run(["cc", *strict, f"-I{ROOT / 'runtime/cpp/include'}", tmp_path / "h.c"], check=True)
