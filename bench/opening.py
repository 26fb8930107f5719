"""What opening and loading a large bundle costs: time, bytes read, memory.

    python bench/opening.py [--gigabytes 2.7] [--bundle build/demo/fashion]

Makes a bundle of random weights from a small one in build/ (and deletes it), with half of them in each of conditioner
and step. Each figure is from a process of its own; files are in the page cache, as after the first time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from ditedge.runtime.bench.machine import processor

ROUNDS = 5
CHUNK = 12_000_000  # numbers of one weight


def grow(path: Path, numbers: int, rng: np.random.Generator) -> None:
    """Adds `numbers` random weights to a graph; they are used, and change nothing."""
    model = onnx.load(path)
    first, output = model.graph.input[0], model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["small" if name == output else name for name in node.output]
    nodes = [
        helper.make_node("Shape", [first.name], ["large_shape"]),
        helper.make_node("ReduceSum", ["large_shape"], ["large_sum"], keepdims=0),
        helper.make_node("Cast", ["large_sum"], ["large_number"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["large_number", "large_one_by_one"], ["large_row"]),
    ]
    model.graph.initializer.append(helper.make_tensor("large_one_by_one", TensorProto.INT64, [2], [1, 1]))
    model.graph.initializer.append(helper.make_tensor("large_zero", TensorProto.FLOAT, [], [0.0]))
    result = "small"
    for i in range(-(-numbers // CHUNK)):
        weight = rng.random(CHUNK, dtype=np.float32)
        model.graph.initializer.append(
            helper.make_tensor(f"large_{i}", TensorProto.FLOAT, [1, CHUNK], weight.tobytes(), raw=True)
        )
        nodes.append(helper.make_node("MatMul", ["large_row", f"large_{i}"], [f"large_{i}_product"]))
        nodes.append(helper.make_node("ReduceMax", [f"large_{i}_product"], [f"large_{i}_max"], keepdims=0))
        nodes.append(helper.make_node("Mul", [f"large_{i}_max", "large_zero"], [f"large_{i}_nothing"]))
        nodes.append(helper.make_node("Add", [result, f"large_{i}_nothing"], [f"large_{i}_result"]))
        result = f"large_{i}_result"
    nodes.append(helper.make_node("Identity", [result], [output]))
    model.graph.node.extend(nodes)
    path.write_bytes(model.SerializeToString())


def large_bundle(source: Path, out: Path, gigabytes: float) -> None:
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("engines"))
    manifest, rng = json.loads((out / "manifest.json").read_text()), np.random.default_rng(0)
    for name in ("conditioner", "step"):
        file = manifest["graphs"][name]["file"]
        grow(out / file, int(gigabytes / 2 * 1e9 / 4), rng)
        with (out / file).open("rb") as opened:
            digest = (
                hashlib.file_digest(opened, "sha256") if sys.version_info >= (3, 11) else hashlib.sha256(opened.read())
            )
        manifest["files"][file] = {"sha256": digest.hexdigest(), "bytes": (out / file).stat().st_size}
    (out / "manifest.json").write_text(json.dumps(manifest))


MEASURE = """
import sys, time
from ditedge.runtime import Session, open_bundle
def status(file, key):
    return int(next(line.split()[1] for line in open(f"/proc/self/{file}") if line.startswith(key)))
read, start = status("io", "rchar"), time.perf_counter()
bundle = open_bundle(sys.argv[1])
opened = time.perf_counter()
session = Session(bundle)
session.load("conditioner")
session.load("step")
loaded = time.perf_counter()
print(opened - start, loaded - opened, (status("io", "rchar") - read) / 1e9, status("status", "VmHWM") / 1e6)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("build/demo/fashion"))
    parser.add_argument("--gigabytes", type=float, default=2.7)
    given = parser.parse_args()
    out = Path("build/opening")
    shutil.rmtree(out, ignore_errors=True)
    try:
        large_bundle(given.bundle, out, given.gigabytes)
        time.sleep(3)  # files that changed within two seconds are hashed twice
        rows = []
        for _ in range(ROUNDS):
            child = subprocess.run(
                [sys.executable, "-c", MEASURE, str(out)], capture_output=True, text=True, check=True
            )
            rows.append([float(number) for number in child.stdout.split()])
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e9
        opened, loaded, read, peak = np.median(rows, axis=0)
        print(
            f"{processor()}: {size:.2f} GB opened in {opened:.2f} s, both graphs loaded in {loaded:.2f} s; "
            f"{read:.2f} GB read, peak memory {peak:.2f} GB (medians of {ROUNDS})"
        )
    finally:
        shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main()
