"""`encoder.onnx` and `blend.onnx` as files, each checked against PyTorch at other sizes than it was traced with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ...runtime.bundle.graph_contract import GraphInfo
from ...runtime.bundle.manifest import ModelInfo
from ...runtime.errors import BundleError
from ...runtime.loop.verify import relative_error
from ...runtime.report import Report
from ..networks.vae_encoder import VaeEncoder
from .decoder import DECODER_TOLERANCE
from .image_modules import Blend, ImageEncoder
from .write import GraphSpec, both_outputs, export_graph, graph_info, write_specs


def write_image_graphs(
    vae: VaeEncoder | None, info: ModelInfo, factor: int, folder: Path, opset: int, report: Report, any_size: bool
) -> dict[str, GraphInfo]:
    """vae: None for a model of pixels. factor: pixels of the picture per latent pixel. any_size: of pictures."""
    channels = info.in_channels if vae is None else _channels(vae)
    latent = (info.in_channels, "H", "W") if any_size else info.latent_shape
    picture = ("h", "w") if any_size else (info.input_size * factor,) * 2
    report("exporting encoder.onnx")
    path = folder / "encoder.onnx"
    spec = GraphSpec(
        "encoder",
        ImageEncoder(vae),
        {"image": (torch.uint8, ("B", *picture, channels))},
        (("latent", torch.float32, ("B", *latent)),),
    )
    side = info.input_size * factor
    export_graph(spec, _picture(2, side, side + 2 * factor if any_size else side, channels), path, opset)
    report("checking encoder.onnx against PyTorch")
    inputs = _picture(1, side + 2 * factor if any_size else side, side, channels)
    [(expected, actual)] = both_outputs(spec, inputs, path)
    error = relative_error(actual, expected)
    if not error <= DECODER_TOLERANCE["float32"]:
        raise BundleError(f"{path.name} does not compute what PyTorch does: relative error {error:.1e}")
    blend = write_specs([_blend(latent)], _SIZES, 0.0, folder, opset, report)
    return {"encoder": graph_info(spec, path), **blend}


_SIZES = {"B": 2, "K": 3, "H": 4, "W": 6}, {"B": 3, "K": 1, "H": 5, "W": 3}


def _blend(latent: tuple[int | str, ...]) -> GraphSpec:
    f32 = torch.float32
    return GraphSpec(
        "blend",
        Blend(),
        {
            "state": (f32, ("B", "K", *latent)),
            "keep": (f32, ("B", 1, *latent[1:])),
            "known": (f32, ("B", *latent)),
            "noise": (f32, ("B", *latent)),
            "level": (f32, ("B", 2)),
        },
        (("next_state", f32, ("B", "K", *latent)),),
    )


def _channels(vae: VaeEncoder) -> int:
    first = next(vae.parameters())
    return int(first.shape[1])


def _picture(batch: int, height: int, width: int, channels: int) -> dict[str, torch.Tensor]:
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, height, width, channels), dtype=np.uint8)
    return {"image": torch.from_numpy(pixels)}
