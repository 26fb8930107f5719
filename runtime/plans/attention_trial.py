"""Does TensorRT compute a graph's attention as one kernel? Asked of TensorRT itself, without a GPU.

The nodes from the first MatMul to the second are cut out of the graph as they are and built alone, and the builder's
list of kernels says whether one of them computes MatMul, Softmax and MatMul.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bundle.manifest import weights_file
from ..errors import EngineError, RequestError
from .graph import BuildLog, parse_graph
from .layers import layers_from_log
from .library import Library, first_gpu, load_library, make_logger
from .lint import Attention, Lint, is_float
from .messages import refusal
from .options import ARCH

TRIAL_BATCH = (1, 2, 16)  # evaluations: least, typical, most
TRIAL_TOKENS = (64, 256, 1024)  # the same of tokens, where their number is open
FUSED_HEAD = 256  # TensorRT fuses float16 and bfloat16 attention up to this head size
ARITHMETIC = ("ELEMENTWISE", "UNARY", "REDUCE", "ACTIVATION", "SOFTMAX", "NORMALIZATION", "MATRIX_MULTIPLY", "EINSUM",
              "CONVOLUTION", "DECONVOLUTION", "SCALE")  # fmt: skip


def lint_graph(path: Path, arch: str = ARCH, library: Library | None = None) -> Lint:
    """Reads an ONNX graph with TensorRT and builds each different attention of it alone, for `arch`.

    Raises EngineError when there is no library, or when it refuses the graph.
    """
    if not path.is_file():
        raise RequestError(f"{path}: no such file")
    library = library or _library()
    if library.is_rtx and not library.has("ComputeCapability", arch.upper()):
        raise RequestError(f"--arch {arch} is no GPU that {library.name} builds for, as sm86 is")
    trt, log = library.module, BuildLog()
    builder = trt.Builder(make_logger(library, log))
    network, parser = parse_graph(library, builder, path, log.errors)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    producers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    gemms: Counter[str] = Counter()
    float32: Counter[str] = Counter()
    casts = copies = 0
    for layer in layers:
        kind, element = _kind(layer), _element(layer.get_output(0)) if layer.num_outputs else ""
        if kind in ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION", "EINSUM"):
            gemms[_gemm_type(layer, producers)] += 1
        if kind in ARITHMETIC and element == "float32":
            float32[kind.lower()] += 1
        casts += kind == "CAST" and is_float(element) and is_float(_element(layer.get_input(0)))
        copies += kind == "SHUFFLE"
    sites = _sites(layers, producers)
    verdicts = {}
    for site in sites:  # every block of a DiT is alike: one trial serves all
        if site.signature not in verdicts:
            verdicts[site.signature] = _trial(library, builder, network, site, arch, log, path.name)
    attention = tuple(
        Attention(site.softmax.name, *verdicts[site.signature], site.element, *site.shape) for site in sites
    )
    weights = path.with_name(weights_file(path.name))
    size = path.stat().st_size + (weights.stat().st_size if weights.is_file() else 0)
    del parser
    return Lint(
        "graph", str(path), size, f"{library.name}, {arch}", attention, dict(gemms), casts, copies, dict(float32)
    )


def _library() -> Library:
    """TensorRT-RTX, or TensorRT where there is a GPU."""
    try:
        return load_library("tensorrt-rtx")
    except EngineError as missing:
        if first_gpu() is None:
            raise missing
        return load_library("tensorrt")


@dataclass(frozen=True)
class _Site:
    """One attention in a parsed network: scores = first(q, k), softmax, second(.., v)."""

    first: Any
    softmax: Any
    second: Any
    value: int  # which input of `second` is v
    biases: tuple[tuple[Any, int], ...]  # layer and input: what is added to the scores and is no constant
    between: tuple[str, ...]  # the layers between them
    element: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(heads, tokens, head size)."""
        q = self.first.get_input(0).shape
        return (int(q[1]) if len(q) == 4 else 1), int(q[-2]), int(q[-1])

    @property
    def signature(self) -> tuple[Any, ...]:
        tensors = (self.first.get_input(0), self.first.get_input(1), self.second.get_input(self.value))
        return (self.between, *((_element(tensor), tuple(tensor.shape)) for tensor in tensors))


def _sites(layers: list[Any], producers: dict[str, Any]) -> list[_Site]:
    consumers: dict[str, list[Any]] = {}
    for layer in layers:
        for i in range(layer.num_inputs):
            if (tensor := layer.get_input(i)) is not None:
                consumers.setdefault(tensor.name, []).append(layer)
    sites = []
    for softmax in layers:
        if _kind(softmax) != "SOFTMAX":
            continue
        before = _upstream(softmax, producers, 6)
        after = _downstream(softmax, consumers, 6)
        if before is None or after is None:
            continue  # not attention
        (first, chain), (second, which, rest) = before, after
        between = tuple(f"{_kind(layer)} {_element(layer.get_output(0))}" for layer in (*chain, softmax, *rest))
        inner = {layer.get_output(0).name for layer in (first, *chain)}
        biases = tuple((layer, i) for layer in chain for i in range(layer.num_inputs) if _is_open(layer, i, inner))
        sites.append(_Site(first, softmax, second, 1 - which, biases, between, _element(first.get_input(0))))
    return sites


def _is_open(layer: Any, index: int, inner: set[str]) -> bool:
    """Whether this input comes from outside and has an open size, as a mask of the keys has, and no constant."""
    tensor = layer.get_input(index)
    return tensor is not None and tensor.name not in inner and any(size < 0 for size in tensor.shape)


def _upstream(layer: Any, producers: dict[str, Any], depth: int) -> tuple[Any, tuple[Any, ...]] | None:
    """The MatMul that feeds `layer`, and what lies between, nearest to the MatMul first."""
    if not depth:
        return None
    for i in range(layer.num_inputs):
        tensor = layer.get_input(i)
        source = producers.get(tensor.name) if tensor is not None else None
        if source is None:
            continue
        if _kind(source) == "MATRIX_MULTIPLY":
            return source, ()
        found = _upstream(source, producers, depth - 1)
        if found is not None:
            return found[0], (*found[1], source)
    return None


def _downstream(layer: Any, consumers: dict[str, list[Any]], depth: int) -> tuple[Any, int, tuple[Any, ...]] | None:
    """The MatMul that `layer` feeds, by which of its inputs, and what lies between."""
    name = layer.get_output(0).name
    for user in consumers.get(name, ()) if depth else ():
        if _kind(user) == "MATRIX_MULTIPLY":
            return user, next(i for i in range(2) if user.get_input(i).name == name), ()
        found = _downstream(user, consumers, depth - 1)
        if found is not None:
            return found[0], found[1], (user, *found[2])
    return None


def _trial(
    library: Library, builder: Any, network: Any, site: _Site, arch: str, log: BuildLog, file: str
) -> tuple[bool | None, str]:
    """Cuts the attention out of the network (fresh inputs, one output; the builder drops the rest) and builds it.

    The inputs share dimensions by name: TensorRT must not think that they may broadcast.
    """
    cut = [("q", site.first, 0), ("k", site.first, 1), ("v", site.second, site.value)]
    cut += [(f"bias{number}", *bias) for number, bias in enumerate(site.biases)]
    for label, layer, i in cut:
        old = layer.get_input(i)
        fresh = network.add_input(f"lint.{site.softmax.name}.{label}", old.dtype, tuple(old.shape))
        for axis, size in enumerate(old.shape):
            if size < 0:
                fresh.set_dimension_name(axis, "E" if axis == 0 else "queries" if label == "q" else "keys")
        layer.set_input(i, fresh)
    for i in reversed(range(network.num_outputs)):
        network.unmark_output(network.get_output(i))
    network.mark_output(site.second.get_output(0))
    config = builder.create_builder_config()
    config.profiling_verbosity = library.member("ProfilingVerbosity", "DETAILED")
    if library.is_rtx:
        config.num_compute_capabilities = 1
        config.set_compute_capability(library.member("ComputeCapability", arch.upper()), 0)
    shapes = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        fresh = tensor.name.startswith("lint.")
        sizes = [
            tuple(size if size >= 0 else tokens if axis and fresh else batch for axis, size in enumerate(tensor.shape))
            for batch, tokens in zip(TRIAL_BATCH, TRIAL_TOKENS, strict=True)
        ]
        shapes.set_shape(tensor.name, *sizes)
    config.add_optimization_profile(shapes)
    log.layers = ""
    log.errors.clear()
    if builder.build_serialized_network(network, config) is None:
        return False, refusal(file, library, log.errors, [arch])
    nodes = {site.first.name, site.softmax.name, site.second.name}
    layers = layers_from_log(log.layers)
    if not layers:
        return None, f"{library.name} does not list its kernels"
    if any(nodes <= set(layer.onnx) for layer in layers):
        return True, ""
    return False, _why_not(site)


def _why_not(site: _Site) -> str:
    if site.element == "float32":
        return "float32 attention is never one kernel: convert the bundle to fp16 or bf16"
    if site.shape[2] > FUSED_HEAD:
        return f"head size {site.shape[2]} is over {FUSED_HEAD}"
    return f"between the products: {', '.join(site.between)}"


def _kind(layer: Any) -> str:
    return str(layer.type).rsplit(".", 1)[-1]


def _element(tensor: Any) -> str:
    names = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "FP8": "float8", "FP4": "float4"}
    name = str(tensor.dtype).rsplit(".", 1)[-1]
    return names.get(name, name.lower())


def _gemm_type(layer: Any, producers: dict[str, Any]) -> str:
    """The element type a product is computed in: that of its input, or what a DequantizeLinear before it expands."""
    source = producers.get(layer.get_input(0).name)
    while source is not None and _kind(source) in ("SHUFFLE", "CAST", "IDENTITY"):
        source = producers.get(source.get_input(0).name)
    if source is not None and _kind(source) == "DEQUANTIZE":
        return _element(source.get_input(0))
    return _element(layer.get_input(0))
