"""The graphs as ONNX files, each checked against PyTorch at other sizes than those it was traced with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...runtime.bundle.graph_contract import GraphInfo, TensorInfo
from ...runtime.bundle.manifest import ModelInfo
from ...runtime.errors import BundleError
from ...runtime.loop.engine import EngineOptions
from ...runtime.loop.engines import open_engine
from ...runtime.loop.verify import relative_error
from ...runtime.report import Report
from ..networks.dit import Network
from ..networks.vae import half_precision
from ..sources.vae_checkpoint import VaeCheckpoint
from .decoder import check_decoder
from .modules import Conditioner, LatentDecoder, PixelDecoder, Step
from .preview import Preview
from .to_onnx import onnx_from_module

GRAPH_TOLERANCE = 2e-5  # float32 against float32, sums in another order: DiT-XL/2 measures 2e-6


@dataclass(frozen=True)
class _GraphSpec:
    """One graph to export. inputs: name -> (dtype, shape); letters are dynamic sizes."""

    name: str
    module: nn.Module
    inputs: Mapping[str, tuple[torch.dtype, tuple[int | str, ...]]]
    output: tuple[str, torch.dtype, tuple[int | str, ...]]


def _graph_specs(model: Network, pixels: bool) -> list[_GraphSpec]:
    config = model.config
    f32, i64 = torch.float32, torch.int64
    latent = (config.in_channels, config.input_size, config.input_size)
    m = model.conditioner(torch.zeros(1), torch.zeros(1, dtype=i64)).shape[1]  # a custom network may have its own M
    specs = [
        _GraphSpec(
            "conditioner",
            Conditioner(model),
            {"timestep": (f32, ("U",)), "label": (i64, ("U",))},
            ("modulation", f32, ("U", m)),
        ),
        _GraphSpec(
            "step",
            Step(model),
            {
                "state": (f32, ("B", "K", *latent)),
                "sample": (i64, ("E",)),
                "condition": (i64, ("E",)),
                "modulation": (f32, ("U", m)),
                "combine": (f32, ("B", "E", config.out_channels)),
                "x0_from": (f32, ("B", 2)),
                "x0_bound": (f32, ("B",)),
                "log_sigma": (f32, ("B", 2)),
                "mix": (f32, ("B", "K", "K+2")),
                "noise": (f32, ("B", *latent)),
            },
            ("next_state", f32, ("B", "K", *latent)),
        ),
    ]
    if pixels:
        image = ("B", config.input_size, config.input_size, config.in_channels)
        inputs = {"latent": (f32, ("B", *latent))}
        specs.append(_GraphSpec("decoder", PixelDecoder(), inputs, ("image", torch.uint8, image)))
    return specs


def _example(spec: _GraphSpec, sizes: dict[str, int], seed: int, largest_timestep: float) -> dict[str, Tensor]:
    """Random inputs of the given dynamic sizes; index inputs stay within every table."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {}
    for name, (dtype, shape) in spec.inputs.items():
        concrete = [sizes[d] if isinstance(d, str) else d for d in shape]
        if dtype == torch.int64:
            inputs[name] = torch.randint(0, 2, concrete, generator=generator)
        elif name == "timestep":
            inputs[name] = torch.rand(concrete, generator=generator) * largest_timestep
        else:
            inputs[name] = torch.randn(concrete, generator=generator)
        if name == "x0_bound":
            inputs[name] = inputs[name].abs() + 0.5
        if name == "log_sigma":
            inputs[name] = inputs[name] * 0.1
    return inputs


def write_graphs(
    model: Network, info: ModelInfo, pixels: bool, folder: Path, opset: int, report: Report
) -> dict[str, GraphInfo]:
    """Exports each graph and checks it against PyTorch at other sizes than those it was traced with.

    pixels: the model makes pictures, so that the decoder is only a conversion.
    """
    trace_sizes = {"B": 2, "K": 3, "K+2": 5, "E": 4, "U": 7}
    check_sizes = {"B": 3, "K": 1, "K+2": 3, "E": 2, "U": 5}
    graphs, largest = {}, max(info.timestep_range)
    for spec in _graph_specs(model, pixels):
        report(f"exporting {spec.name}.onnx")
        path = folder / f"{spec.name}.onnx"
        _export_graph(spec, _example(spec, trace_sizes, 1, largest), path, opset)
        report(f"checking {spec.name}.onnx against PyTorch")
        _check_graph(spec, _example(spec, check_sizes, 2, largest), path)
        graphs[spec.name] = _graph_info(spec, path)
    return graphs


def _export_graph(spec: _GraphSpec, example: dict[str, Tensor], path: Path, opset: int) -> None:
    dynamic = {
        name: {i: d for i, d in enumerate(shape) if isinstance(d, str)} for name, (_, shape) in spec.inputs.items()
    }
    onnx_from_module(spec.module, example, spec.output[0], dynamic, path, opset)


def _graph_info(spec: _GraphSpec, path: Path) -> GraphInfo:
    return GraphInfo(
        file=path.name,
        inputs=[_tensor_info(name, dtype, shape) for name, (dtype, shape) in spec.inputs.items()],
        outputs=[_tensor_info(*spec.output)],
    )


def _tensor_info(name: str, dtype: torch.dtype, shape: tuple[int | str, ...]) -> TensorInfo:
    return TensorInfo(name=name, dtype=str(dtype).removeprefix("torch."), shape=list(shape))  # type: ignore[arg-type]


def _check_graph(spec: _GraphSpec, inputs: dict[str, Tensor], path: Path) -> None:
    expected, actual = _both(spec, inputs, path)
    error = relative_error(actual, expected)
    if not error <= GRAPH_TOLERANCE:
        raise BundleError(
            f"{path.name} does not compute what PyTorch does: relative error {error:.1e}, allowed {GRAPH_TOLERANCE:.0e}"
        )


def _both(spec: _GraphSpec, inputs: dict[str, Tensor], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The output of the module in PyTorch, and of its graph."""
    with torch.no_grad():
        expected = spec.module(*inputs.values()).contiguous().numpy()
    actual = np.empty_like(expected)
    engine = open_engine(path, EngineOptions())
    try:
        engine.run({name: tensor.numpy() for name, tensor in inputs.items()}, {spec.output[0]: actual})
    finally:
        engine.close()
    return expected, actual


def write_decoder(
    vae: VaeCheckpoint, info: ModelInfo, folder: Path, precision: str, opset: int, report: Report
) -> GraphInfo:
    """Exports the VAE's decoder in its precision and checks it against the float32 one in PyTorch."""
    report("exporting decoder.onnx")
    config, path = vae.decoder.config, folder / "decoder.onnx"
    decoder = half_precision(vae.decoder) if precision == "float16" else vae.decoder
    latent = info.latent_shape  # as many channels as the VAE's: `read_fitting_vae`
    picture = (info.input_size * config.factor,) * 2
    spec = _GraphSpec(
        "decoder",
        LatentDecoder(decoder),
        {"latent": (torch.float32, ("B", *latent))},
        ("image", torch.uint8, ("B", *picture, config.out_channels)),
    )
    _export_graph(spec, {"latent": torch.randn(2, *latent)}, path, opset)
    report("checking decoder.onnx against PyTorch")
    check_decoder(path, vae.decoder, info.input_size, precision)
    return _graph_info(spec, path)


def write_preview(preview: Preview, info: ModelInfo, folder: Path, opset: int, report: Report) -> GraphInfo:
    """Exports the rough picture of latents and checks it against PyTorch: each number within 1 of 255."""
    report("exporting preview.onnx")
    path, side = folder / "preview.onnx", info.input_size * preview.scale
    spec = _GraphSpec(
        "preview",
        preview,
        {"latent": (torch.float32, ("B", *info.latent_shape))},
        ("image", torch.uint8, ("B", side, side, preview.colours)),
    )
    _export_graph(spec, _example(spec, {"B": 2}, 1, 0.0), path, opset)
    inputs = _example(spec, {"B": 3}, 2, 0.0)
    expected, actual = _both(spec, inputs, path)
    if np.abs(actual.astype(np.int16) - expected).max() > 1:
        raise BundleError(f"{path.name} does not compute what PyTorch does: pictures differ by more than 1 of 255")
    return _graph_info(spec, path)
