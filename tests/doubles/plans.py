"""Folders of plans that the doubles run: a bundle's ONNX graphs in .plan files, with a truthful record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from ditedge.runtime.bundle.open import open_bundle
from ditedge.runtime.plans.record import PLAN_NAMES, RECORD_NAME


def onnx_as_plan(source: Path, graph: str, tensors: dict, profile: dict) -> bytes:
    return source.read_bytes()


def write_plans(
    bundle: Path,
    *,
    max_batch: int = 8,
    max_rows: int = 9,
    slots: int = 4,
    conditioner_rows: int = 64,
    target: str = "double",
    library: tuple[str, str] = ("tensorrt-rtx", "1.7.1.116"),
    as_plan: Callable = onnx_as_plan,
) -> Path:
    """engines/`target`/ of a bundle: its ONNX graphs as plans, with a truthful record. Returns the step plan's path.

    as_plan(path of the ONNX file, graph, its tensors in the manifest, its profile) -> bytes that the double understands.
    """
    opened = open_bundle(bundle)
    folder = bundle / "engines" / target
    folder.mkdir(parents=True)
    most = {"B": max_batch, "E": 2 * max_batch, "K": slots, "K+2": slots + 2, "U": max_rows}
    least = {"B": 1, "E": 1, "K": 1, "K+2": 3, "U": 1}
    plans = {}
    for graph, name in PLAN_NAMES.items():
        if graph not in opened.manifest.graphs:
            continue
        info, plan = opened.manifest.graphs[graph], folder / name
        if graph == "conditioner":
            most = most | {"U": conditioner_rows}
        else:
            most = most | {"U": max_rows}
        profile = {
            tensor.name: {
                "min": [least.get(size, size) for size in tensor.shape],
                "opt": [most.get(size, size) for size in tensor.shape],
                "max": [most.get(size, size) for size in tensor.shape],
            }
            for tensor in info.inputs
        }
        plan.write_bytes(as_plan(bundle / info.file, graph, info.model_dump(mode="json"), profile))
        sha256 = hashlib.sha256(plan.read_bytes()).hexdigest()
        plans[graph] = {
            "file": plan.name,
            "plan": {"sha256": sha256, "bytes": plan.stat().st_size},
            "source_sha256": opened.manifest.files[info.file].sha256,
            "profile": profile,
            "seconds": 0.0,
        }
    record = {
        "format": "ditedge-engines",
        "version": 1,
        "made_by": "the tests",
        "library": library[0],
        "library_version": library[1],
        "gpu": None,
        "compute_capabilities": ["sm86", "sm89"],
        "flags": [],
        "max_batch": max_batch,
        "max_rows": max_rows,
        "bundle_sha256": opened.sha256,
        "plans": plans,
    }
    (folder / RECORD_NAME).write_text(json.dumps(record))
    return folder / PLAN_NAMES["step"]
