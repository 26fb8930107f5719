"""docs/format.md, "Reading rules": what a later release adds is ignored, unless the bundle requires it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ditedge import __version__
from ditedge.runtime import generate, open_bundle
from ditedge.runtime.bundle import manifest as manifest_module
from ditedge.runtime.describe import describe_bundle
from ditedge.runtime.errors import BundleError
from ditedge.runtime.plans.record import record_from_json
from tests.conftest import ROOT


def make_later(bundle: Path) -> None:
    """What a later release may add to a bundle without asking: fields, graphs, names of formats."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest |= {"surprise": {"deep": [1]}, "requires": []}
    manifest["model"] |= {"architecture": "unet", "surprise": 1}
    manifest["graphs"]["step"] |= {"precision": "float8", "surprise": 1}
    manifest["graphs"]["text"] = {"file": "text.onnx", "inputs": [{"name": "ids", "dtype": "int32"}]}
    manifest["graphs"]["step"]["inputs"][0]["surprise"] = 1
    manifest["golden"][0] |= {"prompt": "a cat"}
    manifest["files"]["step.onnx"]["surprise"] = 1
    manifest["quantization"] = {"precision": "nf4", "form": "vulkan", "weights": "columns", "activations": "bfloat16"}
    manifest["quantization"] |= {"conditioner": "nf4", "smoothing": None, "kept": [], "source_bundle": "0" * 64}
    manifest["quantization"] |= {"calibration": None, "surprise": 1}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def edit(bundle: Path, **changes: object) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_bundle_of_a_later_release(gray_bundle: Path) -> None:
    before = generate(open_bundle(gray_bundle), [3], [7])
    make_later(gray_bundle)
    bundle = open_bundle(gray_bundle)
    assert (generate(bundle, [3], [7]) == before).all()
    assert describe_bundle(bundle)["quantization"]["precision"] == "nf4"
    assert set(bundle.manifest.graphs) == {"conditioner", "step", "decoder"}


def test_a_required_name_that_is_unknown_is_named(gray_bundle: Path) -> None:
    """Before anything else: a field that this reader does not understand either would hide it."""
    edit(gray_bundle, requires=["wings", "a tail"], model={"of": "another shape"})
    words = f"requires 'wings', 'a tail', which ditedge {__version__} does not know: update ditedge"
    with pytest.raises(BundleError, match=words):
        open_bundle(gray_bundle)


def test_a_required_name_that_is_understood(gray_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "UNDERSTOOD", frozenset({"wings"}))
    edit(gray_bundle, requires=["wings"])
    assert open_bundle(gray_bundle).manifest.requires == ["wings"]
    edit(gray_bundle, requires=["wings", "a tail"])
    with pytest.raises(BundleError, match="requires 'a tail', which"):
        open_bundle(gray_bundle)


def test_a_build_record_of_a_later_release() -> None:
    path = ROOT / "tests" / "cpp" / "build.json"
    plain = json.loads(path.read_text())
    later = plain | {"surprise": 1, "plans": plain["plans"] | {"text": {"file": "text.plan"}}}
    later["plans"]["step"] = later["plans"]["step"] | {"surprise": 1}
    raw = json.dumps(later).encode()
    assert record_from_json(raw, path) == record_from_json(path.read_bytes(), path)
