"""What docs/format.md says of each graph's tensors, checked before memory is taken for any of them.

Twice: the manifest against the format, and a loaded graph against its manifest. Tensors are bound by address later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo

from ..fields import Count, Strict
from ..samplers.program import is_step_graph
from .text_info import SCALARS, TextInfo

GRAPHS = ("conditioner", "step", "decoder", "preview")  # by their names in a manifest and in a build record
# Of a model that takes prompts, beside those; text encoders after the first have numbers.
PROMPT_GRAPHS = ("text", "text_2", "text_3", "text_4", "context", "position")
IMAGE_GRAPHS = ("encoder", "blend")  # of a bundle that can start from a picture, beside those
PLANNED = (*GRAPHS, "context", "position")  # that a build makes plans of
INTERVAL, GUIDANCE = "interval", "guidance"  # numbers that a conditioner of classes may be told
MAX_GRAPHS, MAX_TENSORS, MAX_RANK = 16, 16, 8
MAX_WIDTH = 1 << 24  # M, numbers of a row of modulation
MAX_PIXELS = 1 << 28  # of one image

Shape = tuple[int | None, ...]  # None: dynamic, or not known


class TensorInfo(Strict):
    """One input or output of a graph. A dimension is a number, or a letter of docs/format.md (B, K, E, U)."""

    name: str
    dtype: Literal["float32", "int64", "uint8"]
    shape: Annotated[list[Count | str], Field(max_length=MAX_RANK)]


class GraphInfo(Strict):
    """One ONNX graph: the file relative to the bundle, and its tensors."""

    file: str
    inputs: Annotated[list[TensorInfo], Field(max_length=MAX_TENSORS)]
    outputs: Annotated[list[TensorInfo], Field(max_length=MAX_TENSORS)]
    precision: str = "float32"  # of its GEMMs and attention: "float16", "bfloat16"; I/O is float32


@dataclass(frozen=True)
class Tensor:
    """A tensor of a loaded graph, or of the format. dtype: as in a manifest, or what the library calls another one."""

    name: str
    dtype: str
    shape: Shape


def graphs_read(found: Any, info: ValidationInfo) -> Any:
    """The entries of a manifest's `graphs` that have a name of ours: others are ignored.

    info: of the manifest's fields before. Raises ValueError for more than MAX_GRAPHS of them.
    """
    names = (*GRAPHS, *IMAGE_GRAPHS, *(PROMPT_GRAPHS if info.data.get("text") is not None else ()))
    return _chosen(found, lambda name: name in names or is_step_graph(name))


def known_plans(found: Any) -> Any:
    """The same of a record's `plans`: of step graphs only "step" has one."""
    return _chosen(found, PLANNED.__contains__)


def _chosen(found: Any, known: Callable[[str], bool]) -> Any:
    if not isinstance(found, dict):
        return found
    if len(found) > MAX_GRAPHS:
        raise ValueError(f"{len(found)} graphs, at most {MAX_GRAPHS} are read")
    return {name: info for name, info in found.items() if known(name)}


def check_graphs(
    latent: tuple[int, int, int], outputs: int, graphs: Mapping[str, GraphInfo], text: TextInfo | None = None
) -> None:
    """Every graph's tensors against the format. latent: C, H, W; outputs: O; text: of a model that takes prompts.

    Raises ValueError naming graph and tensor.
    """
    for graph, (inputs, made) in _contracts(latent, outputs, graphs, text).items():
        for side, tensors, wanted in (("input", graphs[graph].inputs, inputs), ("output", graphs[graph].outputs, made)):
            for info in tensors:
                if not any(_fits(_of(info), tensor) for tensor in wanted):
                    raise ValueError(f"graph {graph}: {side} '{info.name}' is not one that a {graph} has")


def check_loaded(info: GraphInfo, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """A loaded graph's tensors against its manifest. Raises ValueError naming the tensor and both sides."""
    for side, loaded, listed in (("input", inputs, info.inputs), ("output", outputs, info.outputs)):
        wanted = {tensor.name: _of(tensor) for tensor in listed}
        for tensor in loaded:
            said = wanted.get(tensor.name)
            if said is None:
                raise ValueError(f"has {side} '{tensor.name}', which the manifest does not list")
            if not _agrees(tensor, said):
                raise ValueError(f"{side} {_text(tensor)} is {_text(said)} in the manifest")
        missing = wanted.keys() - {tensor.name for tensor in loaded}
        if missing and side == "output":  # an input that a graph does not need is not given to it
            raise ValueError(f"has no output '{min(missing)}', which the manifest lists")


Contract = tuple[list[Tensor], list[Tensor]]  # inputs and outputs


def _contracts(
    latent: tuple[int, int, int], outputs: int, graphs: Mapping[str, GraphInfo], text: TextInfo | None
) -> dict[str, Contract]:
    """By graph: its inputs and outputs. The widths that only the manifest knows are taken from there, bounded."""
    m = _width(graphs, "conditioner", 2)
    f32, i64, sizes = "float32", "int64", latent if text is None else (latent[0], None, None)
    of_classes = [Tensor("label", i64, (None,)), *(Tensor(name, f32, (None,)) for name in (INTERVAL, GUIDANCE))]
    told = of_classes if text is None else _told_of_prompts(graphs)
    contracts: dict[str, Contract] = {
        "conditioner": ([Tensor("timestep", f32, (None,)), *told], [Tensor("modulation", f32, (None, m))])
    }
    prompt, of_prompts = ([], {}) if text is None else _prompt_contracts(graphs, text)
    step = _step_inputs(sizes, m, outputs) + prompt
    for graph in filter(is_step_graph, graphs):
        _output_shape(graphs, graph)
        contracts[graph] = step, [Tensor("next_state", f32, (None, None, *sizes))]
    for graph in ("decoder", "preview"):
        if graph in graphs:
            image = Tensor("image", "uint8", (None, *_picture(graph, _output_shape(graphs, graph), text is None)))
            contracts[graph] = [Tensor("latent", f32, (None, *sizes))], [image]
    return contracts | of_prompts | _image_contracts(graphs, sizes, text is None)


def _step_inputs(latent: Shape, m: int, outputs: int) -> list[Tensor]:
    f32, i64 = "float32", "int64"
    return [
        Tensor("state", f32, (None, None, *latent)),
        Tensor("sample", i64, (None,)),
        Tensor("condition", i64, (None,)),
        Tensor("modulation", f32, (None, m)),
        Tensor("combine", f32, (None, None, outputs)),
        Tensor("x0_from", f32, (None, 2)),
        Tensor("x0_bound", f32, (None,)),
        Tensor("log_sigma", f32, (None, 2)),
        Tensor("mix", f32, (None, None, None)),
        Tensor("noise", f32, (None, *latent)),
    ]


def _told_of_prompts(graphs: Mapping[str, GraphInfo]) -> list[Tensor]:
    """What a conditioner may read beside the timestep: the vector that `context` makes of a prompt, named numbers."""
    shape = _made(graphs, "context", "vector")
    vector = [] if shape is None else [Tensor("vector", "float32", (None, _bounded(shape, 2, "context")))]
    return vector + [Tensor(name, "float32", (None,)) for name in SCALARS]


def _prompt_contracts(graphs: Mapping[str, GraphInfo], text: TextInfo) -> tuple[list[Tensor], dict[str, Contract]]:
    """What a step has besides where the model takes prompts, and the graphs that make it."""
    f32, i64, read, made = "float32", "int64", [], []
    for suffix, info in text.encoders.items():
        rows = [Tensor(name, f32, (None, *shape)) for name, shape in info.rows(suffix, None).items()]
        mask = [Tensor(f"mask{suffix}", i64, (None, info.tokens))] if info.masked else []
        read += [*rows, *mask]
        ids = Tensor("ids", i64, (None, info.tokens))
        own = [Tensor(row.name.removesuffix(suffix), f32, row.shape) for row in rows]
        made.append(([ids, *(Tensor("mask", i64, part.shape) for part in mask)], own))
    shape = _made(graphs, "context", "context") or ()
    wide, rows_of = _bounded(shape, 3, "context"), shape[1] if len(shape) == 3 else None
    context = Tensor("context", f32, (None, rows_of, wide))
    told, bias = [context], Tensor("context_bias", f32, (None, rows_of))
    outputs = [context, bias, *_told_of_prompts(graphs)[: -len(SCALARS)]]
    contracts: dict[str, Contract] = {"context": (read, outputs)}
    if "position" in graphs:
        position = Tensor("position", f32, (None, None, _width(graphs, "position", 3)))
        contracts["position"] = [Tensor("row", f32, (None,)), Tensor("column", f32, (None,))], [position]
        told.append(position)
    for suffix, contract in zip(text.encoders, made, strict=True):
        if f"text{suffix}" in graphs:
            contracts[f"text{suffix}"] = contract
    return [*told, bias, Tensor("prompt", i64, (None,))], contracts


def _made(graphs: Mapping[str, GraphInfo], graph: str, output: str) -> Shape | None:
    """The shape of an output, None where the graph has none of that name."""
    found = [_of(info).shape for info in graphs[graph].outputs if info.name == output]
    return found[0] if found else None


def _bounded(shape: Shape, rank: int, graph: str) -> int:
    """The last size, checked."""
    if len(shape) != rank or shape[-1] is None or shape[-1] > MAX_WIDTH:
        raise ValueError(f"graph {graph}: output has no width")
    return shape[-1]


def _image_contracts(graphs: Mapping[str, GraphInfo], sizes: Shape, fixed: bool) -> dict[str, Contract]:
    """What a bundle that can start from a picture has besides. fixed: the pictures have one size."""
    f32, contracts = "float32", dict[str, Contract]()
    latent = Tensor("latent", f32, (None, *sizes))
    if "encoder" in graphs:
        inputs = graphs["encoder"].inputs
        if len(inputs) != 1:
            raise ValueError("graph encoder: expected one input")
        contracts["encoder"] = (
            [Tensor("image", "uint8", (None, *_picture("encoder", _of(inputs[0]).shape, fixed)))],
            [latent],
        )
    if "blend" in graphs:
        state, like = (
            Tensor("state", f32, (None, None, *sizes)),
            [Tensor(n, f32, (None, *sizes)) for n in ("known", "noise")],
        )
        keep, level = Tensor("keep", f32, (None, 1, *sizes[1:])), Tensor("level", f32, (None, 2))
        contracts["blend"] = [state, keep, *like, level], [Tensor("next_state", f32, state.shape)]
    return contracts


def _width(graphs: Mapping[str, GraphInfo], graph: str, rank: int) -> int:
    """The last size of the first output, bounded."""
    shape = _of(graphs[graph].outputs[0]).shape if graphs[graph].outputs else ()
    if graph == "conditioner":
        shape = _output_shape(graphs, graph)
    return _bounded(shape, rank, graph)


def _output_shape(graphs: Mapping[str, GraphInfo], graph: str) -> Shape:
    if len(graphs[graph].outputs) != 1:
        raise ValueError(f"graph {graph}: expected one output")
    return _of(graphs[graph].outputs[0]).shape


def _picture(graph: str, shape: Shape, fixed: bool) -> tuple[int | None, int | None, int]:
    """h, w and 1 or 3 of what a decoder or a preview makes. fixed: h and w are numbers; else they are open."""
    sizes = [size for size in shape[1:] if size is not None]
    if not fixed and len(shape) == 4 and sizes in ([1], [3]):
        return None, None, sizes[0]
    if not fixed or len(shape) != 4 or len(sizes) != 3 or sizes[2] not in (1, 3) or sizes[0] * sizes[1] > MAX_PIXELS:
        raise ValueError(f"graph {graph}: output is not images of {'a fixed' if fixed else 'an open'} size")
    return sizes[0], sizes[1], sizes[2]


def _of(info: TensorInfo) -> Tensor:
    return Tensor(info.name, info.dtype, tuple(size if isinstance(size, int) else None for size in info.shape))


def _fits(tensor: Tensor, wanted: Tensor) -> bool:
    """What a manifest says may leave a size open that the format knows, but not fix one that is dynamic."""
    return (tensor.name, tensor.dtype, len(tensor.shape)) == (wanted.name, wanted.dtype, len(wanted.shape)) and all(
        size is None or size == known for size, known in zip(tensor.shape, wanted.shape, strict=True)
    )


def _agrees(loaded: Tensor, said: Tensor) -> bool:
    """A graph knows every size that its manifest knows."""
    return (loaded.dtype, len(loaded.shape)) == (said.dtype, len(said.shape)) and all(
        known is None or size == known for size, known in zip(loaded.shape, said.shape, strict=True)
    )


def _text(tensor: Tensor) -> str:
    sizes = ", ".join("?" if size is None else str(size) for size in tensor.shape)
    return f"'{tensor.name}' {tensor.dtype} [{sizes}]"
