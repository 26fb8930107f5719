"""Manifests and programs that libditedge refuses."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from capi_ctypes import DitedgeError, load

from ditedge import __version__
from ditedge.runtime.bundle.manifest import UNDERSTOOD
from tests.conftest import BUNDLES, PIXART, ROOT
from tests.cpp.support import BUNDLE, PROGRAM, edit
from tests.fuzz.verdicts import UNUSED
from tests.runtime.bundle.test_reading_rules import make_later


def open_status(library: ctypes.CDLL, folder: Path) -> tuple[int, str]:
    bundle = ctypes.c_void_p()
    status = library.ditedge_bundle_open(os.fsencode(folder), 1, ctypes.byref(bundle))
    assert (status == 0) == bool(bundle.value)
    library.ditedge_bundle_close(bundle)
    return status, library.ditedge_last_error().decode(errors="replace")


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[1]", b"\xff\xfe", b'{"format": "ditedge-bundle"', b"[" * 100_000, b'{"a":' * 100_000, b"null", b"1e999",
        b'{"format": "ditedge-bundle", "version": 2}', b'{"format": 3}', b'{"format": "ditedge-bundle", "version": 1.5}',
        b'"' + b"x" * (17 << 20) + b'"',
    ],
)  # fmt: skip
def test_manifests_that_are_none(built: Path, gray_bundle: Path, text: bytes) -> None:
    (gray_bundle / "manifest.json").write_bytes(text)
    status, message = open_status(load(built / "libditedge.so"), gray_bundle)
    assert status == BUNDLE and "manifest.json" in message


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"version": 1}, "version: this library reads bundle version 2: export the checkpoint again"),
        ({"version": 99}, "version: this library reads bundle version 2: update ditedge"),
        ({"version": "1"}, "version"),
        ({"graphs": {}}, "graph 'conditioner' is missing"),
        ({"labels": ["one"]}, "1 labels for 10 classes"),
        ({"defaults": {"program": "nope", "guidance": 1.0}}, "default program 'nope'"),
        ({"programs": {"ddpm-50": "unlisted.json"}}, "unlisted.json"),
        ({"schedule": None}, "flow model"),
    ],
)
def test_manifests_that_contradict_themselves(built: Path, gray_bundle: Path, changes: dict, complaint: str) -> None:
    edit(gray_bundle, **changes)
    status, message = open_status(load(built / "libditedge.so"), gray_bundle)
    assert status == BUNDLE and complaint in message


@pytest.mark.parametrize("name", ["../secret.json", "/etc/passwd", "a/../../b", "..\\x", "x\0y", ".", ""])
def test_paths_may_not_leave_the_bundle(built: Path, gray_bundle: Path, name: str) -> None:
    files = json.loads((gray_bundle / "manifest.json").read_text())["files"]
    edit(gray_bundle, files=files | {name: {"sha256": "0" * 64, "bytes": 1}})
    status, message = open_status(load(built / "libditedge.so"), gray_bundle)
    assert status == BUNDLE and "leaves the bundle" in message


def test_damaged_missing_and_linked_files(built: Path, gray_bundle: Path, tmp_path: Path) -> None:
    library, step = load(built / "libditedge.so"), gray_bundle / "step.onnx"
    good = step.read_bytes()
    assert open_status(library, gray_bundle) == (0, "")
    step.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    assert "does not match its hash" in open_status(library, gray_bundle)[1]
    step.write_bytes(good[:-1])
    assert open_status(library, gray_bundle)[0] == BUNDLE
    step.unlink()
    assert "step.onnx is missing" in open_status(library, gray_bundle)[1]
    (tmp_path / "outside.onnx").write_bytes(good)
    step.symlink_to(tmp_path / "outside.onnx")
    assert "leaves the bundle" in open_status(library, gray_bundle)[1]
    assert open_status(library, tmp_path / "nowhere")[0] == BUNDLE


def properties() -> list[tuple[str, ...]]:
    """Every property of the published schema, as a path into a manifest."""
    schema = json.loads((ROOT / "docs" / "manifest.schema.json").read_text())
    places = {"ModelInfo": ("model",), "ScheduleInfo": ("schedule",), "VaeInfo": ("vae",)}
    places |= {"DefaultsInfo": ("defaults",), "GoldenInfo": ("golden", "0"), "GraphInfo": ("graphs", "step")}
    places |= {"FileInfo": ("files", "step.onnx"), "TensorInfo": ("graphs", "step", "inputs", "0")}
    places |= {"QuantizationInfo": ("quantization",), "TextInfo": ("text",)}
    places |= {"EncoderInfo": ("text", "further", "0"), "FlowInfo": ("flow",), "SizeShift": ("flow", "by_size")}
    places |= {"FewSteps": ("flow", "by_size", "few")}
    places |= {"InstructionInfo": ("text", "instruction")}
    assert set(places) >= set(schema["$defs"]), (
        "a new object in the manifest: teach it to runtime/cpp/src/manifest.cpp, or to UNUSED"
    )
    found = [(name,) for name in schema["properties"]]
    return found + [
        (*place, name)
        for kind, place in places.items()
        if kind in schema["$defs"]
        for name in schema["$defs"][kind]["properties"]
    ]


@pytest.mark.parametrize("path", properties(), ids="/".join)
def test_every_property_of_the_schema_is_checked_or_not_used(
    built: Path, gray_bundle: Path, path: tuple[str, ...]
) -> None:
    """A value of a type that no property has is refused where C++ uses it, so that the C++ code cannot drift."""
    if path[0] == "text":
        shutil.rmtree(gray_bundle)
        shutil.copytree(BUNDLES / PIXART, gray_bundle)
    manifest = json.loads((gray_bundle / "manifest.json").read_text())
    manifest["vae"] = {"kind": "kl", "source_sha256": "0" * 64, "precision": "float32"}
    manifest["vae"] |= {"scaling_factor": 1.0, "shift_factor": 0.0}
    manifest["quantization"] = {"precision": "int8", "form": "onnxruntime", "weights": "per-channel"}
    manifest["quantization"] |= {"activations": "per-token", "smoothing": None, "kept": [], "conditioner": "int8"}
    manifest["quantization"] |= {"source_bundle": "0" * 64, "calibration": None}
    if path[0] == "text":
        manifest["text"] |= {
            "further": [{"tokens": 8, "width": None, "pooled": 4}],
            "instruction": {"text": "x", "tokens": 3},
        }
        manifest["requires"] = ["text", "instruction"]
    manifest["flow"] = {"by_size": {"few": {}}}
    library = load(built / "libditedge.so")
    edit(gray_bundle, **manifest)
    assert open_status(library, gray_bundle) == (0, "")
    place = manifest
    for key in path[:-1]:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[path[-1]] = [[{"no": "such type"}]]
    edit(gray_bundle, **manifest)
    name = "/".join("*" if part == "0" and "further" in path else part for part in path)
    unused = any(f"{name}/".startswith(f"{other}/") for other in UNUSED["manifest"])
    assert open_status(library, gray_bundle)[0] == (0 if unused else BUNDLE)


def test_a_bundle_of_a_later_release(opened, gray_bundle: Path) -> None:
    """Its weight format, its golden trajectories, its fields and graphs are unknown: the picture is the same."""
    before = opened(gray_bundle).generate([3], [7])
    make_later(gray_bundle)
    np.testing.assert_array_equal(opened(gray_bundle).generate([3], [7]), before)


def test_required_names_are_understood_or_named(built: Path, gray_bundle: Path) -> None:
    library = load(built / "libditedge.so")
    edit(gray_bundle, requires=[], defaults="of another shape")
    assert "defaults" in open_status(library, gray_bundle)[1]
    edit(gray_bundle, requires=["wings", "a tail"])  # says more than what is wrong with a field
    words = (
        f"requires: the bundle requires 'wings', 'a tail', which libditedge {__version__} does not know: update ditedge"
    )
    assert words in open_status(library, gray_bundle)[1]


def test_both_runtimes_understand_the_same_names() -> None:
    source = (ROOT / "runtime" / "cpp" / "src" / "manifest.cpp").read_text()
    (names,) = re.findall(r"std::set<std::string> names = \{([^}]*)\};", source)
    assert set(re.findall(r'"([^"]*)"', names)) == UNDERSTOOD


def test_a_graph_that_is_not_what_the_manifest_says(opened, gray_bundle: Path) -> None:
    """Buffers are bound by address: a session with other tensors must be refused before anything is bound."""
    manifest = json.loads((gray_bundle / "manifest.json").read_text())
    raw = (gray_bundle / "conditioner.onnx").read_bytes()
    (gray_bundle / "step.onnx").write_bytes(raw)
    manifest["files"]["step.onnx"] = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    edit(gray_bundle, **manifest)
    with pytest.raises(DitedgeError, match="manifest describes") as caught:
        opened(gray_bundle)
    assert caught.value.status == BUNDLE  # before an engine takes memory for it


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"version": 1}, "version"),
        ({"timestep": []}, "timestep"),
        ({"mix": [[[1.0]]]}, "mix"),
        ({"mix": 1e400}, "JSON"),
        ({"guidance": [1]}, "guidance: has 1 rows, timestep has 25"),
        ({"guidance": [1] * 24 + [-1]}, "guidance: is negative"),
        ({"init": [1.0]}, "init: has a list of 1 numbers, expected 2"),
        ({"x0_bound": -1}, "x0_bound"),
        ({"x0_from": None}, "x0_from"),
        ({"init": "1"}, "init"),
    ],
)
def test_bad_programs(opened, gray_bundle: Path, tmp_path: Path, changes: dict, complaint: str) -> None:
    program = json.loads((gray_bundle / "programs" / "ddim-25.json").read_text()) | changes
    (tmp_path / "p.json").write_text(json.dumps(program).replace("Infinity", "1e400"))
    with pytest.raises(DitedgeError, match=complaint) as caught:
        opened(gray_bundle).generate([1], [1], program_file=str(tmp_path / "p.json").encode())
    assert caught.value.status == PROGRAM
