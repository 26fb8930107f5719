"""What libditedge reads of a bundle: opened once, used as it was hashed, within the limits of docs/format.md."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from capi_ctypes import Ditedge, DitedgeError, Info, Options, load

from ditedge.runtime import open_bundle
from ditedge.runtime.errors import BundleError

BUNDLE, PROGRAM, REQUEST = 2, 3, 4


class Later(Ditedge):
    """A bundle that is open; its session is opened later."""

    def __init__(self, library: Path, bundle: Path | str, check_hashes: int = 1) -> None:
        self.c = load(library)
        self.bundle, self.sampler, self.info = ctypes.c_void_p(), ctypes.c_void_p(), Info(size=ctypes.sizeof(Info))
        self._check(self.c.ditedge_bundle_open(str(bundle).encode(), check_hashes, ctypes.byref(self.bundle)))
        self._check(self.c.ditedge_bundle_info(self.bundle, ctypes.byref(self.info)))

    def open_session(self, engine_library: Path) -> None:
        self.c.ditedge_session_close(self.sampler)
        options = Options()
        self._check(self.c.ditedge_session_options_init(ctypes.byref(options), ctypes.c_size_t(ctypes.sizeof(options))))
        options.library, options.threads = str(engine_library).encode(), 1
        self._check(self.c.ditedge_session_open(self.bundle, ctypes.byref(options), ctypes.byref(self.sampler)))

    def latents(self) -> np.ndarray:
        return self.generate([3], [7], images=False, program=b"ddim-25")


@pytest.fixture
def later(built: Path):
    handles: list[Later] = []

    def make(bundle: Path | str, check_hashes: int = 1) -> Later:
        handles.append(Later(built / "libditedge.so", bundle, check_hashes))
        return handles[-1]

    yield make
    for handle in handles:
        handle.close()


def rehash(bundle: Path, **changes: object) -> None:
    """The manifest says what the files are, and `changes`."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text()) | changes
    for file in bundle.rglob("*"):
        if file.is_file() and str(file.relative_to(bundle)) in manifest["files"]:
            raw = file.read_bytes()
            info = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
            manifest["files"][str(file.relative_to(bundle))] = info
    path.write_text(json.dumps(manifest))


def test_after_open_nothing_is_read_by_name(
    later, gray_bundle: Path, onnxruntime_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(gray_bundle.parent)
    handle = later(gray_bundle.name)
    handle.open_session(onnxruntime_library)
    expected = handle.latents()
    programs = gray_bundle / "programs"
    shutil.copy(programs / "ddpm-50.json", programs / "ddim-25.json")
    assert np.array_equal(handle.latents(), expected), "an edited program runs"
    monkeypatch.chdir("/")
    assert np.array_equal(handle.latents(), expected), "a daemon's working folder"
    shutil.rmtree(gray_bundle)
    assert np.array_equal(handle.latents(), expected), "the bundle was deleted"
    handle.open_session(onnxruntime_library)
    assert np.array_equal(handle.latents(), expected), "another sampler of a deleted bundle"


def overwritten(path: Path) -> None:
    """Other bytes of the same size in the same file, with the old modification time."""
    before = path.stat()
    raw = path.read_bytes()
    with path.open("r+b") as file:
        file.write(raw[:-1] + bytes([raw[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "same size and time": overwritten,
    "cut short": lambda path: os.truncate(path, 100),
    "emptied": lambda path: path.write_bytes(b""),
    "grown": lambda path: path.write_bytes(b"x" * 9_999_999),
}


# What was written less than two seconds ago is hashed again anyway.
@pytest.mark.parametrize(("name", "seconds"), [*((name, 0) for name in CHANGES), ("same size and time", 2.1)])
def test_a_graph_that_is_written_to_after_open_is_refused(
    later, gray_bundle: Path, onnxruntime_library: Path, name: str, seconds: float
) -> None:
    time.sleep(seconds)
    handle = later(gray_bundle)
    CHANGES[name](gray_bundle / "step.onnx")
    with pytest.raises(DitedgeError, match=r"step.onnx: does not match its hash") as caught:
        handle.open_session(onnxruntime_library)
    assert caught.value.status == BUNDLE


def test_a_graph_that_is_replaced_after_open_is_the_old_one(
    later, gray_bundle: Path, golden_bundle, onnxruntime_library: Path
) -> None:
    handle = later(gray_bundle)
    handle.open_session(onnxruntime_library)
    expected = handle.latents()
    other = gray_bundle / "other.onnx"
    shutil.copy(golden_bundle("gray1_cfg", "x0") / "step.onnx", other)
    os.replace(other, gray_bundle / "step.onnx")
    handle.open_session(onnxruntime_library)
    assert np.array_equal(handle.latents(), expected)


def test_without_hashes_only_sizes_are_checked(later, gray_bundle: Path, onnxruntime_library: Path) -> None:
    path = gray_bundle / "programs" / "ddim-25.json"
    path.write_text(path.read_text().replace("ddim-25", "ddim-52"))
    with pytest.raises(DitedgeError, match="ddim-25.json: does not match its hash"):
        later(gray_bundle)
    handle = later(gray_bundle, check_hashes=0)
    handle.open_session(onnxruntime_library)
    handle.latents()
    path.write_text(path.read_text() + " ")
    with pytest.raises(DitedgeError, match="ddim-25.json: does not match"):
        later(gray_bundle, check_hashes=0)


def test_golden_and_quality_are_optional_and_checked(later, gray_bundle: Path) -> None:
    golden = sorted((gray_bundle / "golden").iterdir())
    (gray_bundle / "quality").mkdir()
    (gray_bundle / "quality" / "report.html").write_text("<p>")
    manifest = json.loads((gray_bundle / "manifest.json").read_text())
    rehash(gray_bundle, files=manifest["files"] | {"quality/report.html": {"sha256": "", "bytes": 0}})
    later(gray_bundle)
    (gray_bundle / "quality" / "report.html").write_text("<b>")
    with pytest.raises(DitedgeError, match="report.html: does not match"):
        later(gray_bundle)
    shutil.rmtree(gray_bundle / "quality")
    golden[0].unlink()
    later(gray_bundle)
    shutil.rmtree(gray_bundle / "golden")
    later(gray_bundle)
    (gray_bundle / "programs" / "ddim-25.json").unlink()
    with pytest.raises(DitedgeError, match="file programs/ddim-25.json is missing"):
        later(gray_bundle)


def test_what_is_used_is_not_optional(later, gray_bundle: Path) -> None:
    """A graph and a program in golden/ have to be there all the same."""
    manifest = json.loads((gray_bundle / "manifest.json").read_text())
    manifest["files"]["golden/step.onnx"] = manifest["files"].pop("step.onnx")
    manifest["graphs"]["step"]["file"] = "golden/step.onnx"
    (gray_bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DitedgeError, match=r"golden/step.onnx is missing") as caught:
        later(gray_bundle)
    assert caught.value.status == BUNDLE
    shutil.move(gray_bundle / "step.onnx", gray_bundle / "golden" / "step.onnx")
    later(gray_bundle)


def with_external_weights(bundle: Path, location: str = "weights.bin", *, attribute: bool = False) -> Path:
    """step.onnx keeps its largest weights in the file `weights.bin`, which it calls `location`. The manifest is true of it."""
    path, data = bundle / "step.onnx", bundle / "weights.bin"
    model = onnx.load(path)
    if attribute:  # in a node instead of the graph's initializers
        tensors = [a.t for node in model.graph.node for a in node.attribute if a.HasField("t") and a.t.raw_data]
    else:
        tensors = list(model.graph.initializer)
    tensor = max(tensors, key=lambda tensor: len(tensor.raw_data))
    data.write_bytes(b"\0" * 64 + tensor.raw_data)
    entries = {"location": location, "offset": "64", "length": str(len(tensor.raw_data))}
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())
    rehash(bundle)
    return data


def test_weights_in_a_listed_file(
    later, gray_bundle: Path, onnxruntime_library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are the hashed ones: another file of that name in the working folder, or in place of the first, is not read."""
    handle = later(gray_bundle)
    handle.open_session(onnxruntime_library)
    expected = handle.latents()
    data = with_external_weights(gray_bundle)
    with pytest.raises(DitedgeError, match=r"step.onnx: keeps weights in 'weights.bin', which is not listed") as caught:
        later(gray_bundle)
    assert caught.value.status == BUNDLE
    manifest = json.loads((gray_bundle / "manifest.json").read_text())
    rehash(gray_bundle, files=manifest["files"] | {"weights.bin": {"sha256": "", "bytes": 0}})
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "weights.bin").write_bytes(b"\0" * data.stat().st_size)
    monkeypatch.chdir(tmp_path / "cwd")
    handle = later(gray_bundle)
    shutil.copy("weights.bin", gray_bundle / "new.bin")
    os.replace(gray_bundle / "new.bin", data)
    handle.open_session(onnxruntime_library)
    assert np.array_equal(handle.latents(), expected)
    with pytest.raises(DitedgeError, match=r"weights.bin: does not match its hash"):
        later(gray_bundle)


@pytest.mark.parametrize(
    "location", ["../weights.bin", "/etc/hostname", "./../weights.bin", "*/_ORT_MEM_ADDR_/*", "a\\b", "", "no.bin"]
)
def test_weights_in_files_that_are_not_listed(later, gray_bundle: Path, location: str) -> None:
    with_external_weights(gray_bundle, location)
    with pytest.raises(DitedgeError, match=r"step.onnx: keeps weights in '.*', which is not listed") as caught:
        later(gray_bundle)
    assert caught.value.status == BUNDLE


def test_weights_of_a_node_in_another_file(later, gray_bundle: Path) -> None:
    """Even in a listed file: ONNX Runtime would open it by its name."""
    manifest = json.loads((gray_bundle / "manifest.json").read_text())
    (gray_bundle / "weights.bin").touch()
    rehash(gray_bundle, files=manifest["files"] | {"weights.bin": {"sha256": "", "bytes": 0}})
    model = onnx.load(gray_bundle / "step.onnx")
    value = onnx.numpy_helper.from_array(np.ones(300, np.float32))
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["unused"], value=value))
    (gray_bundle / "step.onnx").write_bytes(model.SerializeToString())
    with_external_weights(gray_bundle, attribute=True)
    with pytest.raises(DitedgeError, match="only the weights of the graph itself may be in another file"):
        later(gray_bundle)


def edited(bundle: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(bundle / "step.onnx")
    edit(model)
    (bundle / "step.onnx").write_bytes(model.SerializeToString())
    rehash(bundle)


def sequence_output(model: onnx.ModelProto) -> None:
    kind = onnx.helper.make_tensor_sequence_value_info("next_state", onnx.TensorProto.FLOAT, None)
    model.graph.output[0].CopyFrom(kind)


def shapeless_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def double_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE


CONTRACTS: dict[str, Callable[[onnx.ModelProto], None]] = {
    "another name": lambda model: setattr(model.graph.output[0], "name", "elsewhere"),
    "another input": lambda model: setattr(model.graph.input[0], "name", "elsewhere"),
    "one more output": lambda model: model.graph.output.add().CopyFrom(model.graph.output[0]),
    "no output": lambda model: model.graph.ClearField("output"),
    "a sequence": sequence_output,
    "no shape": shapeless_input,
    "another type": double_input,
    "another rank": lambda model: model.graph.input[0].type.tensor_type.shape.dim.add(),
    "another size": lambda model: setattr(model.graph.output[0].type.tensor_type.shape.dim[2], "dim_value", 77),
    "a size that is open": lambda model: model.graph.output[0].type.tensor_type.shape.dim[3].Clear(),
    "a thousand inputs": lambda model: [model.graph.input.add().CopyFrom(model.graph.input[0]) for _ in range(1000)],
}


@pytest.mark.parametrize("name", CONTRACTS)
def test_graphs_that_are_not_what_the_manifest_says(later, gray_bundle: Path, name: str) -> None:
    edited(gray_bundle, CONTRACTS[name])
    with pytest.raises(DitedgeError, match=r"step.onnx: .*manifest describes") as caught:
        later(gray_bundle)
    assert caught.value.status == BUNDLE


@pytest.mark.parametrize(
    "raw", [b"", b"ORTM" * 9, b"\x3a\xff\xff\xff\xff\x0f", b"\x3a" * 999, b"\xff" * 99, b"\x0b\x0c"]
)
def test_files_that_are_no_onnx(later, gray_bundle: Path, raw: bytes) -> None:
    (gray_bundle / "step.onnx").write_bytes(raw)
    rehash(gray_bundle)
    with pytest.raises(DitedgeError, match="step.onnx") as caught:
        later(gray_bundle)
    assert caught.value.status == BUNDLE


def test_graphs_in_graphs_are_bounded(later, gray_bundle: Path) -> None:
    def nest(model: onnx.ModelProto) -> None:
        inner = onnx.GraphProto()
        for _ in range(20):
            outer = onnx.GraphProto()
            outer.node.add().attribute.add().g.CopyFrom(inner)
            inner = outer
        model.graph.node.add().attribute.add().g.CopyFrom(inner)

    edited(gray_bundle, nest)
    with pytest.raises(DitedgeError, match="nested more than 32 deep"):
        later(gray_bundle)


def test_hashes(built: Path, tmp_path: Path) -> None:
    """Every length around a block's end, in pieces of every kind, with the processor's instructions and without."""
    random = np.random.default_rng(7)
    files = [tmp_path / f"{size:07d}" for size in (*range(200), 4095, 4096, 4097, 1_000_003)]
    for file in files:
        file.write_bytes(random.bytes(int(file.name)))
    expected = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    commands = {"fast": [], "portable": []}
    if shutil.which("qemu-x86_64-static") and os.uname().machine == "x86_64":
        commands["fast, where there are none"] = ["qemu-x86_64-static", "-cpu", "Haswell"]
    for kind, prefix in commands.items():
        for piece in (1 << 30, 64, 63, 7):
            command = [*prefix, built / "ditedge-sha256", kind, str(piece), *files]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            assert done.stdout.split() == expected, (kind, piece)


def test_damage_is_found_in_every_file(later, gray_bundle: Path) -> None:
    """Files are hashed in parallel, in another order than they are listed."""
    big = gray_bundle / "big.bin"
    big.write_bytes(bytes(20 << 20))  # several threads
    manifest = json.loads((gray_bundle / "manifest.json").read_text())
    rehash(gray_bundle, files=manifest["files"] | {"big.bin": {"sha256": "", "bytes": 0}})
    later(gray_bundle)
    for name in (*manifest["files"], "big.bin"):
        raw = (gray_bundle / name).read_bytes()
        (gray_bundle / name).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        with pytest.raises(DitedgeError, match=f"{re.escape(name)}: does not match its hash"):
            later(gray_bundle)
        (gray_bundle / name).write_bytes(raw)
    later(gray_bundle)


JSON = {
    "a key twice": ('{"a": 1, "b": {"a": 2}, "a": 3}', "'a' stands twice"),
    "a key twice, written in two ways": ('{"a": 1, "\\u0061": 3}', "'a' stands twice"),
    "33 levels": ('{"a":' * 33 + "1" + "}" * 33, "nested more than 32 deep"),
    "a byte order mark": ('\ufeff{"format": "ditedge-bundle"}', "not valid JSON"),
    "bytes after a NUL": ('{"format": "ditedge-bundle", "version": 1}\0', "not valid JSON"),
    "a lone surrogate": ('{"format": "\\ud800"}', "not valid JSON"),
    "a surrogate in bytes": (b'{"format": "\xed\xa0\x80"}', "not valid JSON"),
    "NaN": ('{"a": NaN}', "not valid JSON"),
    "infinity": ('{"a": -Infinity}', "not valid JSON"),
    "a number beyond float64": ('{"a": 1e400}', "not valid JSON"),
    "a whole number of 5,000 digits": ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
    "a comment": ('{"a": 1} // b', "not valid JSON"),
    "two documents": ("{} {}", "not valid JSON"),
    "too many values": ("[" + "0," * (1 << 20) + "0]", "more values"),
    "16 MB and a byte": (" " * (16 << 20) + "1", "larger than 16 MB"),
}


@pytest.mark.parametrize("name", JSON)
def test_json_that_is_refused(later, gray_bundle: Path, name: str) -> None:
    text, complaint = JSON[name]
    (gray_bundle / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DitedgeError, match=complaint) as caught:
        later(gray_bundle)
    assert caught.value.status == BUNDLE
    with pytest.raises(BundleError, match="manifest.json"):
        open_bundle(gray_bundle)


# Value at a place of the manifest -> whether it is within the limits of docs/format.md.
LIMITS: list[tuple[str, object, bool]] = [
    ("model/num_classes", 1_000_000, True),
    ("model/num_classes", 1_000_001, False),
    ("model/num_classes", 2**64, False),
    ("model/num_classes", 10.0, False),
    ("model/num_classes", True, False),
    ("model/num_classes", "10", False),
    ("model/null_class", 1_000_001, False),
    ("model/null_class", -1, False),
    ("model/input_size", 65_537, False),
    ("model/in_channels", 65_537, False),
    ("model/out_channels", 131_073, False),
    ("model/parameters", 2**63 - 1, True),
    ("model/parameters", 2**63, False),
    ("model/timestep_range", [3.0e38, -3.0e38], True),
    ("model/timestep_range", [3.1e38, 0], False),
    ("model/timestep_range", [1, 2, 3], False),
    ("schedule/steps", 100_001, False),
    ("defaults/guidance", 3.1e38, False),
    ("labels", ["a"] * 11, False),
    ("programs", {f"p{i}": "programs/ddim-25.json" for i in range(1001)}, False),
    ("files", {f"f{i}": {"sha256": "0" * 64, "bytes": 0} for i in range(1001)}, False),
    ("files/step.onnx/bytes", 2**63, False),
    ("files/step.onnx/bytes", -1, False),
    ("graphs/step/inputs/0/shape", ["B", 1, 1, 1, 1, 1, 1, 1, 1], False),
    ("graphs/conditioner/outputs/0/shape", ["U", 2**24 + 1], False),
    ("graphs/decoder/outputs/0/shape", ["B", 2**20, 2**20, 1], False),
    ("preview", {"weight": [[1e39]], "bias": [0.0], "scale": 1}, False),
    ("preview", {"weight": [[1.0]], "bias": [0.0], "scale": 65}, False),
]


@pytest.mark.parametrize(("place", "value", "within"), LIMITS, ids=[f"{p}={str(v)[:20]}" for p, v, _ in LIMITS])
def test_limits_of_a_manifest(later, gray_bundle: Path, place: str, value: object, within: bool) -> None:
    manifest = json.loads((gray_bundle / "manifest.json").read_text())
    *parts, last = place.split("/")
    at = manifest
    for part in parts:
        at = at[int(part)] if isinstance(at, list) else at[part]
    at[last] = value
    manifest["labels"] = manifest["labels"] if place == "labels" else []
    (gray_bundle / "manifest.json").write_text(json.dumps(manifest))
    if within:
        later(gray_bundle)
        open_bundle(gray_bundle)
        return
    with pytest.raises(DitedgeError, match=r"manifest.json: ") as caught:
        later(gray_bundle)
    assert caught.value.status == BUNDLE
    with pytest.raises(BundleError, match=r"manifest.json: "):  # Python's verdict is the same
        open_bundle(gray_bundle)


def test_programs_together_are_bounded(later, gray_bundle: Path) -> None:
    manifest = json.loads((gray_bundle / "manifest.json").read_text())
    for size, count, complaint in (
        (16 << 20, 5, "larger than 64 MB together"),
        ((16 << 20) + 1, 1, "larger than 16 MB"),
    ):
        more = {f"programs/{i}.json": {"sha256": "0" * 64, "bytes": size} for i in range(count)}
        changed = manifest | {
            "files": manifest["files"] | more,
            "programs": manifest["programs"] | {n: n for n in more},
        }
        (gray_bundle / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(DitedgeError, match=complaint):
            later(gray_bundle)


def test_a_process_without_descriptors(built: Path, gray_bundle: Path) -> None:
    """The sentence says what is wrong, not that the bundle would be."""
    code = "import ctypes, resource, sys\n"
    code += "library, bundle = ctypes.CDLL(sys.argv[1]), ctypes.c_void_p()\n"
    code += "library.ditedge_last_error.restype = ctypes.c_char_p\n"
    code += "resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[3]),) * 2)\n"
    code += "print(library.ditedge_bundle_open(sys.argv[2].encode(), 1, ctypes.byref(bundle)), library.ditedge_last_error().decode())"
    for limit, words in ((3, f"{gray_bundle} is not a bundle: Too many"), (8, "cannot read .*: Too many"), (100, "$")):
        command = [sys.executable, "-c", code, str(built / "libditedge.so"), str(gray_bundle), str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert re.match(f"{0 if limit == 100 else BUNDLE} {words}", done.stdout), done.stdout


MEMORY = """
import ctypes, resource, sys
from tests.conftest import 
library = ctypes.CDLL(sys.argv[1])
bundle = ctypes.c_void_p()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if library.ditedge_bundle_open(sys.argv[2].encode(), 1, ctypes.byref(bundle)) == 0:
    library.ditedge_program_steps(bundle, b"ddim-25", ctypes.byref(ctypes.c_int64()))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def peak_mib(library: Path, bundle: Path) -> float:
    command = [sys.executable, "-c", MEMORY, str(library), str(bundle)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024


def test_hostile_json_costs_a_few_times_its_size(built: Path, gray_bundle: Path) -> None:
    """15 MB of zeros or of empty lists in a manifest or a program."""
    library, path = built / "libditedge.so", gray_bundle / "manifest.json"
    whole, program = path.read_text(), gray_bundle / "programs" / "ddim-25.json"
    assert '"labels": []' in whole
    for many in ("0," * 7_900_000 + "0", "[0]," * 3_900_000 + "0", '"a",' * 3_900_000 + '"a"'):
        path.write_text(whole.replace('"labels": []', f'"labels": [{many}]'))
        assert peak_mib(library, gray_bundle) < 150
    path.write_text(whole)
    text = program.read_text()
    program.write_text(text.replace('"timestep": [', '"timestep": [' + "0," * 7_900_000))
    assert program.stat().st_size > 15e6
    rehash(gray_bundle)
    assert peak_mib(library, gray_bundle) < 150
