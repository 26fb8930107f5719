"""Bundles are untrusted: what is damaged, foreign or dangerous is refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from ditedge.runtime import open_bundle
from ditedge.runtime.bundle.manifest import Manifest
from ditedge.runtime.errors import BundleError, ProgramError, RequestError
from tests.conftest import ROOT


def edit(bundle: Path, **changes: object) -> None:
    """Changes the manifest; "model.depth" is the depth inside of model."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    for place, value in changes.items():
        *outer, last = place.split(".")
        inner = manifest
        for key in outer:
            inner = inner[int(key) if isinstance(inner, list) else key]
        inner[int(last) if isinstance(inner, list) else last] = value
    path.write_text(json.dumps(manifest))


def test_opens_by_folder_and_by_file_inside(gray_bundle: Path) -> None:
    for path in (gray_bundle, gray_bundle / "step.onnx", gray_bundle / "programs" / "ddpm-50.json"):
        assert open_bundle(path).folder == gray_bundle


def test_tampered_graph_is_refused(gray_bundle: Path) -> None:
    raw = bytearray((gray_bundle / "step.onnx").read_bytes())
    raw[len(raw) // 2] ^= 1  # same size, one bit
    (gray_bundle / "step.onnx").write_bytes(raw)
    with pytest.raises(BundleError, match=r"step\.onnx: does not match its hash"):
        open_bundle(gray_bundle)


def test_a_graph_is_as_large_as_its_file_and_its_weights_beside_it(gray_bundle: Path) -> None:
    (gray_bundle / "step.onnx.data").write_bytes(b"weights")
    entry = {"sha256": hashlib.sha256(b"weights").hexdigest(), "bytes": 7}
    edit(
        gray_bundle,
        **{"files": json.loads((gray_bundle / "manifest.json").read_text())["files"] | {"step.onnx.data": entry}},
    )
    manifest = open_bundle(gray_bundle).manifest
    assert manifest.graph_files("step") == ["step.onnx", "step.onnx.data"]
    assert manifest.graph_bytes("step") == (gray_bundle / "step.onnx").stat().st_size + 7
    assert manifest.graph_files("conditioner") == ["conditioner.onnx"]


def test_missing_file_is_named(gray_bundle: Path) -> None:
    (gray_bundle / "conditioner.onnx").unlink()
    with pytest.raises(BundleError, match=r"conditioner\.onnx is missing"):
        open_bundle(gray_bundle)


@pytest.mark.parametrize("name", ["../secret.json", "/etc/passwd", "a/../../b", "..\\x", "x\0y", "."])
def test_paths_may_not_leave_the_bundle(gray_bundle: Path, name: str) -> None:
    files = json.loads((gray_bundle / "manifest.json").read_text())["files"]
    edit(gray_bundle, files=files | {name: {"sha256": "0" * 64, "bytes": 1}})
    with pytest.raises(BundleError, match="leaves the bundle|is missing"):
        open_bundle(gray_bundle)


def test_symbolic_links_out_of_the_bundle_are_refused(gray_bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    os.replace(gray_bundle / "step.onnx", outside)
    (gray_bundle / "step.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="leaves the bundle"):
        open_bundle(gray_bundle)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"version": 1}, "bundle version 1, this ditedge reads version 2: export the checkpoint again"),
        ({"version": 99}, "bundle version 99, .*: update ditedge"),
        ({"version": "2"}, "bundle version '2'"),
        ({"format": "something"}, "not the manifest of a ditedge bundle"),
        ({"graphs": {}}, "graph 'conditioner' is missing"),
        ({"requires": None}, "requires: Input should be a valid list"),
        ({"requires": [1]}, "requires.0: Input should be a valid string"),
        ({"graphs": {f"g{i}": {} for i in range(17)}}, "graphs: 17 graphs, at most 16 are read"),
        ({"labels": ["one"]}, "1 labels for 10 classes"),
        ({"defaults": {"program": "nope", "guidance": 1.0}}, "default program 'nope'"),
        ({"programs": {"dpm++-20": "unlisted.json"}}, "unlisted.json"),
        ({"version": True}, "bundle version True"),
        ({"version": 2.0}, "bundle version 2.0"),
        ({"model.depth": "2"}, "model.depth: Input should be a valid integer"),
        ({"model.depth": True}, "model.depth: Input should be a valid integer"),
        ({"model.parameters": 2**64}, "model.parameters"),
        ({"model.num_classes": 10**9}, "model.num_classes: .*less than or equal to 1000000"),
        ({"model.null_class": -1}, "model.null_class"),
        ({"model.input_size": 65536, "model.in_channels": 3}, "latents of 3 x 65536 x 65536 are too large"),
        ({"model.input_size": 65537}, "model.input_size"),
        ({"model.in_channels": 2}, "graph step: input 'state' is not one that a step has"),
        ({"defaults.guidance": 1e39}, "defaults.guidance"),
        ({"defaults.guidance": float("nan")}, "defaults.guidance: a number that is not finite"),
        ({"graphs.step.outputs": []}, "graph step: expected one output"),
        ({"graphs.step.inputs.0.dtype": "int64"}, "graph step: input 'state'"),
        ({"graphs.step.inputs.0.shape": ["B", "K", 1, 8]}, "graph step: input 'state'"),
        ({"graphs.step.inputs.0.shape": ["B"] * 9}, "graphs.step.inputs.0.shape"),
        ({"graphs.step.outputs.0.name": "other"}, "graph step: output 'other'"),
        ({"graphs.conditioner.outputs.0.shape": ["U", 2**25]}, "graph conditioner: output has no width"),
        ({"graphs.decoder.outputs.0.shape": ["B", 2**20, 2**20, 1]}, "images of a fixed size"),
        ({"graphs.decoder.outputs.0.shape": ["B", "h", 8, 1]}, "images of a fixed size"),
        ({"files": {f"f{i}": {"sha256": "0" * 64, "bytes": 1} for i in range(1001)}}, "files: .*at most 1000"),
    ],
)
def test_bad_manifests_are_refused(gray_bundle: Path, changes: dict, complaint: str) -> None:
    edit(gray_bundle, **changes)
    with pytest.raises(BundleError, match=complaint):
        open_bundle(gray_bundle)


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe", b'{"format": "ditedge-bundle"', b"[" * 100_000])
def test_manifests_that_are_not_json(gray_bundle: Path, text: bytes) -> None:
    (gray_bundle / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(gray_bundle)


def test_labels_by_number_and_name(gray_bundle: Path) -> None:
    edit(gray_bundle, labels=[f"Thing {i}" for i in range(10)])
    bundle = open_bundle(gray_bundle)
    assert (bundle.label("3"), bundle.label("thing 7"), bundle.label_name(7)) == (3, 7, "Thing 7")
    for unknown in ("10", "-1", "Thing", ""):
        with pytest.raises(RequestError, match=f"class '?{unknown}"):
            bundle.label(unknown)


def test_programs_by_name_and_by_settings(gray_bundle: Path) -> None:
    bundle = open_bundle(gray_bundle)
    assert bundle.program().name == "dpm++-20" and bundle.program("ddim-25").steps == 25
    assert bundle.program(steps=7).name == "dpm++-7"
    assert bundle.program(variance="fixed-small").name == "ddpm-20" and bundle.program(eta=0.5).name == "ddim-20"
    with pytest.raises(RequestError, match="no program 'x'"):
        bundle.program("x")
    with pytest.raises(ProgramError, match="steps 1001"):
        bundle.program(steps=1001)
    with pytest.raises(ProgramError, match="give one of them"):
        bundle.program(steps=5, respacing="5")


def test_settings_beside_a_default_that_was_tuned(gray_bundle: Path) -> None:
    """It has no settings of its own: a sampler and steps that are not given are those of the first that has some."""
    bundle = open_bundle(gray_bundle)
    tuned = replace(bundle.program(steps=3), name="tuned-5", made={"tune": {"shape": {"sampler": "dpm++2"}}})
    named = bundle.manifest.programs
    tables = bundle.programs | {"dpm++-20": tuned}
    assert next(iter(named)) == "dpm++-20" and bundle.program("ddim-25").steps == 25
    changed = replace(bundle, programs=tables)
    assert changed.program() is tuned
    assert changed.program(sampler="dpm++", steps=7).name == "dpm++-7"
    base = next(name for name in named if name != "dpm++-20")
    assert changed.program(steps=9).name == f"{bundle.program(base).made['sampler']}-9"
    assert changed.program(sampler="ddim").steps == bundle.program(base).steps
    without = replace(bundle, programs={name: tuned for name in named})
    with pytest.raises(ProgramError, match="was not made from sampler settings"):
        without.program(steps=7)


def test_published_schema_is_current() -> None:
    published = ROOT / "docs" / "manifest.schema.json"
    assert json.loads(published.read_text()) == Manifest.model_json_schema(), (
        "the manifest changed: run `make schema` and raise MANIFEST_VERSION if old bundles no longer load"
    )
