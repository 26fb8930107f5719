"""The graphs of a model that takes prompts as ONNX files, each checked against PyTorch at other sizes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ...runtime.bundle.graph_contract import GraphInfo
from ...runtime.bundle.manifest import ModelInfo
from ...runtime.bundle.text_info import EncoderInfo
from ...runtime.errors import CheckpointError
from ...runtime.report import Report
from ..networks.interface import Interface, PromptNetwork, Shape
from .modules import PixelDecoder
from .text_modules import Context, Position, PromptConditioner, PromptStep
from .write import GraphSpec, Inputs, step_inputs, write_specs

Output = tuple[str, torch.dtype, Shape]


def write_prompt_graphs(
    model: PromptNetwork, info: ModelInfo, pixels: bool, folder: Path, opset: int, report: Report
) -> dict[str, GraphInfo]:
    """conditioner, context, step, and position where the family has it, of any H and W that are multiples and any T.

    pixels: the model makes pictures, so that there is a decoder, and it is only a conversion.
    """
    multiple = model.interface.multiple
    trace = {"B": 2, "K": 3, "K+2": 5, "E": 4, "U": 7, "P": 3, "T": 6, "h": 5, "w": 8}
    check = {"B": 3, "K": 1, "K+2": 3, "E": 2, "U": 5, "P": 2, "T": 9, "h": 4, "w": 3}
    both = [sizes | {_times(multiple, side): multiple * sizes[side] for side in ("h", "w")} for sizes in (trace, check)]
    return write_specs(_specs(model, pixels), (both[0], both[1]), max(info.timestep_range), folder, opset, report)


def _times(multiple: int, side: str) -> str:
    return f"{multiple}*{side}" if multiple > 1 else side


def _specs(model: PromptNetwork, pixels: bool) -> list[GraphSpec]:
    own, f32 = model.interface, torch.float32
    told = _conditions(own)
    reads: Inputs = {
        name: (torch.int64 if name.startswith("mask") else f32, ("P", *shape)) for name, shape in own.reads.items()
    }
    row, column = (f32, ("h",)), (f32, ("w",))
    position = ("position", f32, ("h", "w", own.position or 0))
    specs = [
        GraphSpec("conditioner", PromptConditioner(model, told), told, (("modulation", f32, ("U", own.modulation)),)),
        GraphSpec("context", Context(model, reads), reads, _of_prompts(own)),
        GraphSpec("position", Position(model, ()), {"row": row, "column": column}, (position,)),
        _step(model),
        *([_pixel_decoder(model)] if pixels else []),
    ]
    return [spec for spec in specs if spec.name != "position" or own.position is not None]


def _conditions(own: Interface) -> Inputs:
    f32 = torch.float32
    vector = {"vector": (f32, ("U", own.vector))} if own.vector is not None else {}
    return {"timestep": (f32, ("U",)), **vector, **{name: (f32, ("U",)) for name in own.scalars}}


def _of_prompts(own: Interface) -> tuple[Output, ...]:
    """What `context` makes, in the order of `PromptNetwork.context`."""
    f32 = torch.float32
    made: list[Output] = [("context", f32, ("P", own.tokens, own.context))]
    made += [("context_bias", f32, ("P", own.tokens))] if own.biased else []
    return (*made, ("vector", f32, ("P", own.vector))) if own.vector is not None else tuple(made)


def _latent(model: PromptNetwork) -> Shape:
    multiple = model.interface.multiple
    return (model.config.in_channels, _times(multiple, "h"), _times(multiple, "w"))


def _pixel_decoder(model: PromptNetwork) -> GraphSpec:
    channels, *sides = _latent(model)
    image = ("image", torch.uint8, ("B", *sides, channels))
    return GraphSpec("decoder", PixelDecoder(), {"latent": (torch.float32, ("B", channels, *sides))}, (image,))


def _step(model: PromptNetwork) -> GraphSpec:
    own, config, f32 = model.interface, model.config, torch.float32
    latent = _latent(model)
    prompts: Inputs = {
        "context": (f32, ("P", own.tokens, own.context)),
        **({"context_bias": (f32, ("P", own.tokens))} if own.biased else {}),
        "prompt": (torch.int64, ("E",)),
        **({"position": (f32, ("h", "w", own.position))} if own.position is not None else {}),
    }
    inputs = {**step_inputs(latent, own.modulation, config.out_channels), **prompts}
    return GraphSpec("step", PromptStep(model, prompts), inputs, (("next_state", f32, ("B", "K", *latent)),))


def write_encoder(
    name: str, encoder: nn.Module, info: EncoderInfo, folder: Path, opset: int, report: Report
) -> GraphInfo:
    """`text.onnx`, `text_2.onnx` ..., checked against PyTorch. encoder: ids, and mask where there is one -> what `info`
    says that it makes, in order. Raises CheckpointError where it makes rows of other widths."""
    i64, tokens = torch.int64, "T" if info.masked else info.tokens
    ids = torch.zeros(1, info.tokens, dtype=i64)
    found = encoder(ids, torch.ones_like(ids)) if info.masked else encoder(ids)
    shapes = info.rows("", None)
    made = dict(zip(shapes, found if isinstance(found, tuple) else (found,), strict=True))
    for output, shape in shapes.items():
        if made[output].shape[-1] != shape[-1]:
            raise CheckpointError(
                f"the text encoder makes rows of {made[output].shape[-1]} numbers, the network reads {shape[-1]}"
            )
    inputs: Inputs = {"ids": (i64, ("P", tokens)), **({"mask": (i64, ("P", tokens))} if info.masked else {})}
    outputs = tuple(
        (output, torch.float32, ("P", *((tokens, shape[1]) if len(shape) == 2 else shape)))
        for output, shape in shapes.items()
    )
    sizes = {"P": 2, "T": 7}, {"P": 1, "T": 12}
    return write_specs([GraphSpec(name, encoder, inputs, outputs)], sizes, 0.0, folder, opset, report)[name]
