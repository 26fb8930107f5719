"""The graphs of a model that takes prompts as ONNX files, each checked against PyTorch at other sizes."""

from __future__ import annotations

from pathlib import Path

import torch

from ...runtime.bundle.graph_contract import GraphInfo
from ...runtime.bundle.manifest import ModelInfo
from ...runtime.errors import CheckpointError
from ...runtime.report import Report
from ..networks.pixart import PixArt
from ..sources.text_folder import TextEncoder
from .text_modules import Context, Position, PromptConditioner, PromptStep
from .write import GraphSpec, step_inputs, write_specs


def write_prompt_graphs(
    model: PixArt, info: ModelInfo, folder: Path, opset: int, report: Report
) -> dict[str, GraphInfo]:
    """conditioner, context, position and step: H and W are any multiples of the patch, T any number of tokens."""
    patch = model.config.patch_size
    trace = {"B": 2, "K": 3, "K+2": 5, "E": 4, "U": 7, "P": 3, "T": 6, "h": 5, "w": 8}
    check = {"B": 3, "K": 1, "K+2": 3, "E": 2, "U": 5, "P": 2, "T": 9, "h": 4, "w": 3}
    both = [sizes | {_times(patch, side): patch * sizes[side] for side in ("h", "w")} for sizes in (trace, check)]
    return write_specs(_specs(model), (both[0], both[1]), max(info.timestep_range), folder, opset, report)


def _times(patch: int, side: str) -> str:
    return f"{patch}*{side}" if patch > 1 else side


def _specs(model: PixArt) -> list[GraphSpec]:
    config, f32, i64 = model.config, torch.float32, torch.int64
    latent = (config.in_channels, _times(config.patch_size, "h"), _times(config.patch_size, "w"))
    m, wide, d = 7 * config.hidden_size, config.context_width, config.hidden_size
    told = {"height": (f32, ("U",)), "width": (f32, ("U",))} if config.told_size else {}
    return [
        GraphSpec(
            "conditioner",
            PromptConditioner(model),
            {"timestep": (f32, ("U",)), **told},
            (("modulation", f32, ("U", m)),),
        ),
        GraphSpec(
            "context",
            Context(model),
            {"hidden": (f32, ("P", "T", config.caption_channels)), "mask": (i64, ("P", "T"))},
            (("context", f32, ("P", "T", wide)), ("context_bias", f32, ("P", "T"))),
        ),
        GraphSpec(
            "position",
            Position(model),
            {"row": (f32, ("h",)), "column": (f32, ("w",))},
            (("position", f32, ("h", "w", d)),),
        ),
        GraphSpec(
            "step",
            PromptStep(model),
            {
                **step_inputs(latent, m, config.out_channels),
                "context": (f32, ("P", "T", wide)),
                "context_bias": (f32, ("P", "T")),
                "prompt": (i64, ("E",)),
                "position": (f32, ("h", "w", d)),
            },
            (("next_state", f32, ("B", "K", *latent)),),
        ),
    ]


def write_encoder(encoder: TextEncoder, width: int, folder: Path, opset: int, report: Report) -> GraphInfo:
    """`text.onnx`, checked against PyTorch. width: Dh. Raises CheckpointError where the encoder has another one."""
    found = encoder(torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2, dtype=torch.int64)).shape[-1]
    if found != width:
        raise CheckpointError(f"the text encoder makes rows of {found} numbers, the network reads {width}")
    spec = GraphSpec(
        "text",
        encoder,
        {"ids": (torch.int64, ("P", "T")), "mask": (torch.int64, ("P", "T"))},
        (("hidden", torch.float32, ("P", "T", width)),),
    )
    sizes = {"P": 2, "T": 7}, {"P": 1, "T": 12}
    return write_specs([spec], sizes, 0.0, folder, opset, report)["text"]
