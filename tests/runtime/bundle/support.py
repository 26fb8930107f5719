"""What tests of a bundle's files share: weights beside a graph, files that are listed, hashes of what lies there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from ditedge.runtime import Bundle, generate


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
