"""What `inspect` can be told, and which kernels a step graph becomes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .bundle.open import open_bundle
from .errors import RequestError
from .loop.lint_ort import lint_on_onnxruntime
from .options import HEADS, TRUSTED_KEYS, option
from .plans.attention_trial import lint_graph
from .plans.lint import Lint, lint_plan
from .plans.options import ARCH


@dataclass(frozen=True)
class InspectRequest:
    """What `ditedge inspect` can be told."""

    path: Path = field(metadata=option("path"))
    heads: int | None = field(
        default=None,
        metadata=option("--heads", help="Attention heads, for a checkpoint of a non-standard size.", range=HEADS),
    )
    weights: str | None = field(
        default=None,
        metadata=option("--weights", help="State dict to take from a checkpoint that has several.", metavar="NAME"),
    )
    lint: bool = field(
        default=False,
        metadata=option(
            "--lint", help="What TensorRT, or ONNX Runtime of what is quantised for it, makes of the step graph."
        ),
    )
    arch: str = field(default=ARCH, metadata=option("--arch", help="The GPU that --lint builds for."))
    trusted_keys: tuple[Path, ...] = field(default=(), metadata=TRUSTED_KEYS)
    strict: bool = field(
        default=False,
        metadata=option("--strict", help="With --lint or a plan: exit code 1 unless attention is one kernel."),
    )


def check_nothing_is_to_be_signed(request: InspectRequest) -> None:
    """Raises RequestError for --trusted-key with something that nobody signs."""
    if request.trusted_keys:
        raise RequestError(f"{request.path}: only bundles and plans are signed: leave --trusted-key out")


def kernels_of(request: InspectRequest) -> Lint:
    """Of a plan, of a graph, or of a bundle's step graph by the engine that it is for. Raises DitedgeError."""
    path, trusted = request.path, request.trusted_keys or None
    if path.suffix == ".plan":
        return lint_plan(path, trusted)
    if path.suffix == ".onnx":
        check_nothing_is_to_be_signed(request)
        return lint_graph(path, request.arch)
    bundle = open_bundle(path, trusted_keys=trusted)
    if bundle.manifest.quantization is not None and bundle.manifest.quantization.form == "onnxruntime":
        return lint_on_onnxruntime(bundle)
    return lint_graph(bundle.graph_file("step"), request.arch)
