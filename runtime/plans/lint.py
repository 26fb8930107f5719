"""Will it be quick? What TensorRT made of a plan, or would make of a graph, kernel by kernel, without a GPU.

Attention decides the speed of a DiT: as one kernel its T x T scores never leave the chip. A graph is examined by
building its attentions alone (`attention_trial.py`), a plan by the list of kernels that its builder left behind.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..bundle.held_files import HeldFile
from ..bundle.signatures import read_trusted_keys
from ..errors import BundleError, EngineError
from .layers import LAYERS_NAME, Layer, PlanLayers, layers_from_json, read_layers
from .library import ErrorLog, deserialize, first_gpu, load_library, make_runtime
from .record import PLAN_NAMES, RECORD_NAME, read_build_record

BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "float8": 8, "int8": 8, "float4": 4, "int4": 4}
COPIES = {"Move", "Resh", "Tran", "Repl", "Conc", "Slic", "Cast", "Etc"}  # of a Myelin kernel's name: no arithmetic


@dataclass(frozen=True)
class Attention:
    """One attention of the network. fused: None when the library does not say."""

    node: str  # its Softmax
    fused: bool | None
    why: str = ""
    element: str = ""
    heads: int = 0
    tokens: int = 0
    head_size: int = 0


@dataclass(frozen=True)
class Lint:
    """What was found. Counts of layers (of a graph) or of kernels (of a plan)."""

    kind: str  # "graph" or "plan" of TensorRT, or ONNX Runtime's "kernels"
    file: str
    bytes: int
    library: str
    attention: tuple[Attention, ...]
    gemms: dict[str, int]  # element type -> matrix products and convolutions
    casts: int  # conversions between float types that are a layer or kernel of their own
    copies: int  # reformats, transposes and other moves
    float32: dict[str, int]  # kind -> how many compute in float32: the islands
    activation_bytes: int = 0  # plans only
    weight_bytes: int = 0

    @property
    def fused(self) -> bool:
        """Whether there are attentions, and every one is known to be one kernel."""
        return bool(self.attention) and all(attention.fused is True for attention in self.attention)


def lint_plan(path: Path, trusted_keys: Iterable[str | Path] | None = None) -> Lint:
    """What a plan of ours consists of: from layers.json beside it, or from the plan itself where there is a GPU.

    trusted_keys: as of `open_bundle`, for the plan's record. Raises BundleError (no record, wrong hash, unreadable, not
    signed), EngineError.
    """
    record = read_build_record(path.parent / RECORD_NAME, read_trusted_keys(trusted_keys))
    names = {file: graph for graph, file in PLAN_NAMES.items()}
    info = record.plans.get(names[path.name]) if path.name in names else None  # type: ignore[call-overload]
    if info is None:
        raise BundleError(f"{path}: not a plan that {path.parent / RECORD_NAME} lists")
    plan = HeldFile(path, info.plan, f"does not match its hash in {RECORD_NAME}: build it again")
    plan.check()
    listed = path.parent / LAYERS_NAME
    layers = read_layers(listed, names[path.name]) if listed.is_file() else None
    if layers is None or (not layers.layers and first_gpu() is not None):  # the builder's log had none
        layers = PlanLayers(tuple(_inspected(record.library, plan)))
    by = f"{record.library} {record.library_version}"
    return plan_report(layers, str(path), info.plan.bytes, by)


def plan_report(plan: PlanLayers, file: str, size: int, library: str) -> Lint:
    """Counts kernels by what they are."""
    gemms: Counter[str] = Counter()
    float32: Counter[str] = Counter()
    casts = copies = 0
    for layer in plan.layers:
        floats = {element for element in (*layer.inputs, *layer.outputs) if is_float(element)}
        if _is_gemm(layer):
            gemms[_product_type(layer)] += 1
        if layer.outputs and {element for element in layer.outputs if is_float(element)} == {"float32"}:
            float32[layer.kind] += 1
        if _is_copy(layer):
            casts += len(floats) > 1
            copies += len(floats) <= 1
    attention = tuple(_attention_of_plan(plan.layers))
    return Lint("plan", file, size, library, attention, dict(gemms), casts, copies, dict(float32),
                plan.activation_bytes, plan.weight_bytes)  # fmt: skip


def _attention_of_plan(layers: Iterable[Layer]) -> Iterable[Attention]:
    """Per Softmax node, whether one kernel computes it and two MatMuls. Without node names: whether a kernel is mha."""
    for layer in layers:
        softmax = [node for node in layer.onnx if "softmax" in node.lower()]
        products = [node for node in layer.onnx if "matmul" in node.lower() or "gemm" in node.lower()]
        one_kernel = "mha" in f"{layer.name} {layer.tactic}".lower()
        element = layer.inputs[0] if layer.inputs else ""
        if one_kernel or (softmax and len(products) >= 2):
            yield Attention(softmax[0] if softmax else layer.name, True, element=element)
        elif softmax or "softmax" in layer.kind.lower() or re.search(r"Maxr?Sub.*Exp", layer.name):
            yield Attention(softmax[0] if softmax else layer.name, False, "several kernels compute it", element)
        elif "ForeignNode" in layer.name and not layer.kind:
            yield Attention(layer.name[:60], None, "the plan was built without details")


def _is_gemm(layer: Layer) -> bool:
    kind = layer.kind.lower()
    words = _words(layer.name)
    return kind in ("gemm", "correlation", "matrixmultiply") or "conv" in kind or "Fc" in words


def _product_type(layer: Layer) -> str:
    """What is multiplied: the narrowest input. A float32 residual that the kernel adds is an input, too."""
    known = [element for element in layer.inputs if element in BITS]
    return min(known, key=BITS.__getitem__) if known else layer.inputs[0] if layer.inputs else "unknown"


def _is_copy(layer: Layer) -> bool:
    words = _words(layer.name)
    return "reformat" in layer.kind.lower() or (layer.kind == "kgen" and bool(words) and words <= COPIES)


def _words(name: str) -> set[str]:
    """ "__myl_AddReshTran_myl0_5" -> {"Add", "Resh", "Tran"}: what a generated kernel does."""
    found = re.match(r"__myl_([A-Za-z]+)_", name)
    return set(re.findall(r"[A-Z][a-z]*", found.group(1))) if found else set()


def _inspected(target: str, plan: HeldFile) -> list[Layer]:
    """Asks the plan itself, as it was hashed. Only with a GPU: without a driver, creating a runtime crashes."""
    library = load_library(target)
    if first_gpu() is None:
        raise EngineError(
            f"{plan.path}: {LAYERS_NAME} is missing, and reading the plan itself needs a GPU: build it again"
        )
    log = ErrorLog()
    runtime = make_runtime(library, log)
    engine = deserialize(library, runtime, plan, log)
    inspector = engine.create_engine_inspector()
    json_format = library.member("LayerInformationFormat", "JSON")
    return layers_from_json(inspector.get_engine_information(json_format))


def is_float(element: str) -> bool:
    return element in ("float32", "float16", "bfloat16", "float8")


def lint_lines(lint: Lint) -> list[str]:
    """The report for people."""
    unit = "layers" if lint.kind == "graph" else "kernels"
    fused = sum(attention.fused is True for attention in lint.attention)
    first = lint.attention[0] if lint.attention else None
    tokens = "any number of" if first and first.tokens < 0 else first.tokens if first else 0  # of open sizes
    shape = f": {first.element}, {first.heads} heads of {first.head_size}, {tokens} tokens" if first else ""
    lines = [
        f"{lint.file}: {lint.bytes / 1e6:.1f} MB, by {lint.library}",
        f"attention: {fused} of {len(lint.attention)} in one kernel" + (shape if first and first.heads else ""),
    ]
    for i, attention in enumerate(lint.attention):
        verdict = {True: "one kernel", False: "NOT FUSED", None: "unknown"}[attention.fused]
        lines.append(f"  block {i} ({attention.node}): {verdict}" + (f": {attention.why}" if attention.why else ""))
    lines += [
        f"matrix products, {unit}: {_counts(lint.gemms)}",
        f"casts between float types: {lint.casts}; reformats and moves: {lint.copies}",
        f"computing in float32, {unit}: {_counts(lint.float32)}",
    ]
    if lint.activation_bytes or lint.weight_bytes:
        lines.append(
            f"on the GPU: {lint.weight_bytes / 1e6:.1f} MB of weights, {lint.activation_bytes / 1e6:.1f} MB more"
        )
    return lines


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
