"""JSON that is damaged, hostile or huge."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from capi_ctypes import DitedgeError

from ditedge.runtime import open_bundle
from ditedge.runtime.errors import BundleError
from tests.cpp.support import BUNDLE, rehash

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


def picture_graph(height: int, width: int, channels: int) -> dict:
    """The decoder as a graph that makes pictures of this size, by a manifest."""
    image = {"name": "image", "dtype": "uint8", "shape": ["B", height, width, channels]}
    latent = {"name": "latent", "dtype": "float32", "shape": ["B", 1, 8, 8]}
    return {"file": "decoder.onnx", "inputs": [latent], "outputs": [image]}


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
    ("model/guided_channels", 2**63 - 1, True),
    ("model/guided_channels", 2**63, False),
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
    ("graphs/preview", {"file": "decoder.onnx", "inputs": [], "outputs": []}, False),
    ("graphs/preview", picture_graph(8, 8, 1), True),
    ("graphs/preview", picture_graph(2**20, 2**20, 1), False),
    ("graphs/preview", picture_graph(8, 8, 4), False),
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


MEMORY = """
import ctypes, sys
def peak():  # getrusage's figure begins at this test's own, and so would show nothing
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
library = ctypes.CDLL(sys.argv[1])
bundle = ctypes.c_void_p()
before = peak()
if library.ditedge_bundle_open(sys.argv[2].encode(), 1, ctypes.byref(bundle)) == 0:
    library.ditedge_program_steps(bundle, b"ddim-25", ctypes.byref(ctypes.c_int64()))
print(peak() - before)
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
