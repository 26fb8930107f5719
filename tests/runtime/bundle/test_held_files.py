"""What is used is what was hashed: a bundle's files are opened and read once, whatever becomes of them after."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from ditedge.runtime import Bundle, generate, open_bundle
from ditedge.runtime.bundle import held_files
from ditedge.runtime.bundle.held_files import HeldFile
from ditedge.runtime.bundle.onnx_files import read_onnx
from ditedge.runtime.bundle.writing import copy_files
from ditedge.runtime.errors import BundleError, DitedgeError


def rehash(bundle: Path) -> None:
    """Writes the hashes of the files as they are into the manifest: what an attacker does, too."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        if (bundle / name).is_file():
            raw = (bundle / name).read_bytes()
            manifest["files"][name] = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    path.write_text(json.dumps(manifest))


def sampled(bundle: Bundle) -> np.ndarray:
    return generate(bundle, [1, 2], [3, 4], program=bundle.program("ddim-25"), guidance=2.0)


def weights_beside(folder: Path, location: str = "weights.bin", file: str = "weights.bin") -> None:
    """The largest weight of the step graph goes to `file`, and the graph says that it is in `location`."""
    model = onnx.load(folder / "step.onnx")
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    (folder / file).write_bytes(weight.raw_data)
    size = len(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
        weight.external_data.add(key=key, value=value)
    (folder / "step.onnx").write_bytes(model.SerializeToString())
    rehash(folder)


def list_file(folder: Path, name: str) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = {"sha256": "0" * 64, "bytes": 0}
    path.write_text(json.dumps(manifest))
    rehash(folder)


def vanish(folder: Path) -> None:
    shutil.rmtree(folder)


def swap(folder: Path) -> None:
    for name in ("step.onnx", "conditioner.onnx", "programs/ddim-25.json", "manifest.json"):
        (folder / "new").write_bytes(b"not what was hashed")
        os.replace(folder / "new", folder / name)


def edit_programs(folder: Path) -> None:
    for path in (folder / "programs").iterdir():
        path.write_text("{}")


@pytest.mark.parametrize("change", [vanish, swap, edit_programs, lambda folder: os.replace(folder, f"{folder}-away")])
def test_what_happens_to_names_after_opening_changes_nothing(
    gray_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    monkeypatch.chdir(gray_bundle.parent)
    bundle = open_bundle(Path(gray_bundle.name))  # relative: a daemon leaves for / after it
    expected = sampled(open_bundle(gray_bundle))
    change(gray_bundle)
    monkeypatch.chdir("/")
    assert np.array_equal(sampled(bundle), expected) and np.array_equal(sampled(bundle), expected)


@pytest.mark.parametrize("how", ["one bit", "shorter", "longer", "empty"])
@pytest.mark.parametrize("old", [True, False])
def test_bytes_that_change_after_opening_are_refused(gray_bundle: Path, how: str, old: bool) -> None:
    path = gray_bundle / "step.onnx"
    if old:
        for file in gray_bundle.rglob("*"):
            os.utime(file, (1, 1))
    bundle, raw, times = open_bundle(gray_bundle), bytearray(path.read_bytes()), path.stat()
    raw[len(raw) // 2] ^= 1
    path.write_bytes({"one bit": raw, "shorter": raw[:-1], "longer": raw + b"\0", "empty": b""}[how])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    for use in (sampled, lambda bundle: bundle.graph_file("step")):
        with pytest.raises(BundleError, match=r"step\.onnx: does not match its hash"):
            use(bundle)


def test_bytes_that_were_written_again_are_the_same(gray_bundle: Path) -> None:
    bundle, path = open_bundle(gray_bundle), gray_bundle / "step.onnx"
    path.write_bytes(path.read_bytes())
    assert sampled(bundle).shape == (2, 8, 8, 1) and bundle.graph_file("step") == path


def test_one_who_reads_by_name_is_told_of_another_file(gray_bundle: Path) -> None:
    bundle, path = open_bundle(gray_bundle), gray_bundle / "step.onnx"
    shutil.copyfile(path, gray_bundle / "copy")
    os.replace(gray_bundle / "copy", path)
    with pytest.raises(BundleError, match=r"step\.onnx was replaced since the bundle was opened"):
        bundle.graph_file("step")
    path.unlink()
    with pytest.raises(BundleError, match=r"step\.onnx is gone"):
        bundle.graph_file("step")


def test_every_byte_is_read_once(gray_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = [], held_files._read_at

    def counted(descriptor: int, offset: int) -> bytes:
        read.append(block := real(descriptor, offset))
        return block

    for file in gray_bundle.rglob("*"):
        os.utime(file, (1, 1))  # the change time cannot be set: wait until no file is young
    monkeypatch.setattr(held_files, "YOUNG_NS", 0)
    monkeypatch.setattr(held_files, "_read_at", counted)
    bundle = open_bundle(gray_bundle)
    sampled(bundle)
    assert sum(map(len, read)) == sum(info.bytes for info in bundle.manifest.files.values())


def test_descriptors_are_given_back(gray_bundle: Path) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("descriptors are counted in /proc")
    bundle = open_bundle(gray_bundle)
    before = opened()
    del bundle
    assert opened() == before - 3 - 2  # three graphs, two golden files


# Weights in other files


@pytest.mark.parametrize("location", ["weights.bin", "/etc/passwd", "../weights.bin", "sub/../../x", "", "none.bin"])
def test_weights_in_files_that_are_not_listed_are_refused(gray_bundle: Path, location: str) -> None:
    weights_beside(gray_bundle, location)
    with pytest.raises(BundleError, match=r"step\.onnx: keeps weights in .* not listed in files"):
        open_bundle(gray_bundle)


@pytest.mark.parametrize("way", ["memory", "links", "bytes"])
@pytest.mark.parametrize("location", ["weights.bin", "./weights.bin"])
def test_listed_weights_are_used_as_they_were_hashed(
    gray_bundle: Path, monkeypatch: pytest.MonkeyPatch, way: str, location: str
) -> None:
    expected = sampled(open_bundle(gray_bundle))
    weights_beside(gray_bundle, location)
    list_file(gray_bundle, "weights.bin")
    if way == "links":
        monkeypatch.delattr(onnxruntime.SessionOptions, "add_external_initializers_from_files_in_memory")
    if way == "bytes":
        monkeypatch.setattr(HeldFile, "alias", lambda self: None)
    bundle = open_bundle(gray_bundle)
    if (
        way != "links"
    ):  # versions without the other way (1.20 to 1.23) follow a link to a deleted file, this one does not
        (gray_bundle / "weights.bin").unlink()
    assert np.array_equal(sampled(bundle), expected)


def test_listed_weights_that_change_are_refused(gray_bundle: Path) -> None:
    weights_beside(gray_bundle)
    list_file(gray_bundle, "weights.bin")
    bundle = open_bundle(gray_bundle)
    with (gray_bundle / "weights.bin").open("r+b") as file:
        file.write(b"\xff" * 4)
    with pytest.raises(BundleError, match=r"weights\.bin: does not match its hash"):
        sampled(bundle)
    with pytest.raises(BundleError, match=r"weights\.bin: does not match its hash"):
        bundle.graph_file("step")


# What an engine would not bind


def other_graph(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        model = onnx.load(folder / "step.onnx")
        change(model)
        (folder / "step.onnx").write_bytes(model.SerializeToString())
        rehash(folder)

    return write


def renamed(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = model.graph.output[0].name = "other"


def nested(model: onnx.ModelProto) -> None:
    graph = model.graph
    for _ in range(40):
        attribute = helper.make_attribute("body", helper.make_graph([], "g", [], []))
        graph.node.add(op_type="If").attribute.append(attribute)
        graph = graph.node[-1].attribute[0].g


def hidden_weights(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="w", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="step.onnx")
    model.graph.node.add(op_type="Constant", output=["c"]).attribute.append(helper.make_attribute("value", tensor))


GRAPHS = {
    "another output": (renamed, "has output 'other', which the manifest does not list"),
    "a text": (
        lambda m: m.graph.output[0].CopyFrom(helper.make_tensor_value_info("next_state", 8, [1])),
        "'next_state'",
    ),
    "a sequence": (
        lambda m: m.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("next_state", 1, None)),
        "tensor 'next_state' is of a type or rank",
    ),
    "half": (
        lambda m: m.graph.output[0].CopyFrom(helper.make_tensor_value_info("next_state", 10, [1] * 5)),
        "'next_state'",
    ),
    "another rank": (
        lambda m: m.graph.input[0].CopyFrom(helper.make_tensor_value_info("state", 1, [1, 1])),
        r"input 'state' float32 \[1, 1\] is 'state' float32 \[\?, \?, 1, 8, 8\] in the manifest",
    ),
    "one more input": (
        lambda m: m.graph.input.append(helper.make_tensor_value_info("more", 1, [1])),
        "has input 'more', which the manifest does not list",
    ),
    "no output": (lambda m: m.graph.ClearField("output"), "has no output 'next_state'"),
    "another engine's file": (lambda m: m.graph.node.add(op_type="EPContext"), "loads another engine's file"),
    "deep": (nested, "nested more than 32 deep"),
    "weights in a node": (hidden_weights, "only the weights of the graph itself"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_that_are_not_the_manifests(gray_bundle: Path, name: str) -> None:
    change, complaint = GRAPHS[name]
    other_graph(change)(gray_bundle)
    with pytest.raises(BundleError, match=rf"step\.onnx: .*{complaint}") as caught:
        open_bundle(gray_bundle)
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_bytes_are_a_graph_or_one_sentence(golden_bundle, data: st.DataObject) -> None:
    raw = bytearray((golden_bundle("gray1_cfg") / "decoder.onnx").read_bytes())
    if data.draw(st.booleans()):
        for _ in range(data.draw(st.integers(1, 5))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    else:
        raw = bytearray(data.draw(st.binary(max_size=200)))
    try:
        read_onnx(bytes(raw), Path("x.onnx"))
    except BundleError as error:
        assert str(error).startswith("x.onnx: ") and "\n" not in str(error)


# Files that a device may leave out


def test_golden_and_quality_may_be_left_out(gray_bundle: Path) -> None:
    (gray_bundle / "quality").mkdir()
    (gray_bundle / "quality" / "report.html").write_text("x")
    list_file(gray_bundle, "quality/report.html")
    open_bundle(gray_bundle)
    expected = sampled(open_bundle(gray_bundle))
    shutil.rmtree(gray_bundle / "golden")
    shutil.rmtree(gray_bundle / "quality")
    bundle = open_bundle(gray_bundle)
    assert np.array_equal(sampled(bundle), expected)
    with pytest.raises(BundleError, match=r"golden/.* is left out here: work on a complete copy"):
        bundle.file(bundle.manifest.golden[0].file)
    (gray_bundle / "programs" / "ddpm-50.json").write_text("{}")
    with pytest.raises(BundleError, match=r"ddpm-50\.json: does not match its hash"):
        open_bundle(gray_bundle)


def test_a_derived_bundle_is_made_of_what_was_hashed(gray_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(gray_bundle)
    (tmp_path / "new").mkdir()
    step = gray_bundle / "step.onnx"
    os.replace(shutil.copyfile(step, tmp_path / "x"), step)
    with pytest.raises(BundleError, match=r"step\.onnx was replaced since the bundle was opened"):
        copy_files(bundle, tmp_path / "new", ())
    shutil.rmtree(gray_bundle / "golden")
    with pytest.raises(BundleError, match=r"golden/.* is left out here: work on a complete copy of the bundle"):
        copy_files(open_bundle(gray_bundle), tmp_path / "new", ())


def test_golden_that_is_there_is_hashed(gray_bundle: Path) -> None:
    path = next((gray_bundle / "golden").iterdir())
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(BundleError, match="golden/.*does not match its hash"):
        open_bundle(gray_bundle)


def test_a_program_is_never_optional(gray_bundle: Path) -> None:
    path = gray_bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["golden/p.json"] = manifest["files"].pop(manifest["programs"]["ddpm-50"])
    manifest["programs"]["ddpm-50"] = "golden/p.json"
    path.write_text(json.dumps(manifest))
    with pytest.raises(DitedgeError, match=r"golden/p\.json is missing"):
        open_bundle(gray_bundle)
