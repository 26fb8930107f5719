"""Folders of plans that the doubles run: a bundle's ONNX graphs in .plan files, with a truthful record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ditedge.runtime.bundle.graph_contract import GraphInfo
from ditedge.runtime.bundle.open import open_bundle
from ditedge.runtime.plans.profile import Sizes, graph_profiles, one_image_shapes, sizes_of
from ditedge.runtime.plans.record import PLAN_NAMES, RECORD_NAME, ShapeRange


def onnx_as_plan(source: Path, *_: object) -> bytes:
    return source.read_bytes()


@dataclass(frozen=True)
class Library:
    """What plans are said to be of, and what is in them.

    as_plan(path of the ONNX file, graph, its tensors in the manifest, its profile, the shapes of its second one, the
    further ones) -> bytes that the double understands.
    """

    name: str = "tensorrt-rtx"
    version: str = "1.7.1.116"
    as_plan: Callable = onnx_as_plan

    @property
    def folder(self) -> str:
        return "double" if (self.name, self.version) == (OURS.name, OURS.version) else self.name


OURS = Library()  # what the double passes for
LEAST = {"B": 1, "E": 1, "K": 1, "K+2": 3, "U": 1}
RECORD = {
    "format": "ditedge-engines",
    "version": 1,
    "made_by": "the tests",
    "gpu": None,
    "compute_capabilities": ["sm86", "sm89"],
    "flags": [],
}


def profile_of(graph: GraphInfo, most: dict[str, int]) -> dict[str, dict[str, list[int]]]:
    """Tuned for the largest sizes."""

    def sizes(shape: list[int | str], of: dict[str, int]) -> list[int]:
        return [of[size] if isinstance(size, str) else size for size in shape]

    return {
        tensor.name: {
            "min": sizes(tensor.shape, LEAST),
            "opt": sizes(tensor.shape, most),
            "max": sizes(tensor.shape, most),
        }
        for tensor in graph.inputs
    }


def written(ranges: dict[str, ShapeRange]) -> dict[str, dict[str, list[int]]]:
    return {name: limits.model_dump() for name, limits in ranges.items()}


def write_plans(
    bundle: Path,
    *,
    max_batch: int = 8,
    max_rows: int = 9,
    slots: int = 4,
    conditioner_rows: int = 64,
    one_image: bool = False,
    latents: tuple[tuple[int, int], ...] = (),
    library: Library = OURS,
) -> Path:
    """engines/double/ of a bundle, or that of another library: its ONNX graphs as plans, with a truthful record.

    Returns the step plan's path. latents: H, W of the sizes of a model that takes prompts; none is that of training.
    """
    opened = open_bundle(bundle)
    folder = bundle / "engines" / library.folder
    folder.mkdir(parents=True)
    most = {"B": max_batch, "E": 2 * max_batch, "K": slots, "K+2": slots + 2}
    rows = {"conditioner": conditioner_rows, "step": max_rows, "decoder": max_rows}
    plans = {}
    for graph, name in PLAN_NAMES.items():
        if graph not in opened.manifest.graphs:
            continue
        info, plan = opened.manifest.graphs[graph], folder / name
        further: list[dict[str, dict[str, list[int]]]] = []
        if opened.manifest.text is None:
            profile = profile_of(info, most | {"U": rows.get(graph, max_rows)})
        else:
            asked = replace(sizes_of(opened, max_batch, max_rows, latents), slots=slots)
            profile, *further = map(written, graph_profiles(opened.manifest, graph, asked))
        exact = one_image_shapes(opened, Sizes(max_batch, slots, max_rows)) if one_image and graph == "step" else {}
        plan.write_bytes(
            library.as_plan(bundle / info.file, graph, info.model_dump(mode="json"), profile, exact, further)
        )
        plans[graph] = {
            "file": plan.name,
            "plan": {"sha256": hashlib.sha256(plan.read_bytes()).hexdigest(), "bytes": plan.stat().st_size},
            "source_sha256": opened.manifest.files[info.file].sha256,
            "profile": profile,
            "one_image": exact,
            "further": further,
            "seconds": 0.0,
        }
    sizes = {"max_batch": max_batch, "max_rows": max_rows}
    told = {"library": library.name, "library_version": library.version, "bundle_sha256": opened.sha256, "plans": plans}
    (folder / RECORD_NAME).write_text(json.dumps(RECORD | sizes | told))
    return folder / PLAN_NAMES["step"]
