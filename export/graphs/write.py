"""The graphs as ONNX files, each checked against PyTorch at other sizes than those it was traced with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from .modules import Conditioner, LatentDecoder, PixelDecoder, Step, ToldConditioner
from .preview import Preview
from .to_onnx import onnx_from_module

# ||graph - module|| / ||module|| of each output, both in float32: sums in another order. Measured: at most 5e-7 in
# small networks of Stable Diffusion 3 and 3.5, FLUX.1 dev and schnell, AuraFlow, PixArt and their text encoders, 2e-6
# in DiT-XL/2; other families only passed the check.
GRAPH_TOLERANCE = 1e-5


Inputs = Mapping[str, tuple[torch.dtype, tuple[int | str, ...]]]  # name -> (dtype, shape)


@dataclass(frozen=True)
class GraphSpec:
    """One graph to export. inputs: name -> (dtype, shape); letters are dynamic sizes."""

    name: str
    module: nn.Module
    inputs: Inputs
    outputs: tuple[tuple[str, torch.dtype, tuple[int | str, ...]], ...]


def step_inputs(latent: tuple[int | str, ...], modulation: int, out_channels: int) -> Inputs:
    """Those that every step has (docs/format.md). latent: (C, H, W); modulation: M."""
    f32, i64 = torch.float32, torch.int64
    return {
        "state": (f32, ("B", "K", *latent)),
        "sample": (i64, ("E",)),
        "condition": (i64, ("E",)),
        "modulation": (f32, ("U", modulation)),
        "combine": (f32, ("B", "E", out_channels)),
        "x0_from": (f32, ("B", 2)),
        "x0_bound": (f32, ("B",)),
        "log_sigma": (f32, ("B", 2)),
        "mix": (f32, ("B", "K", "K+2")),
        "noise": (f32, ("B", *latent)),
    }


def _graph_specs(model: Network, pixels: bool) -> list[GraphSpec]:
    config = model.config
    f32, i64 = torch.float32, torch.int64
    latent = (config.in_channels, config.input_size, config.input_size)
    told = [torch.ones(1) for _ in config.told]
    m = model.conditioner(torch.zeros(1), torch.zeros(1, dtype=i64), *told).shape[1]  # a custom one may have its own M
    specs = [
        GraphSpec(
            "conditioner",
            ToldConditioner(model) if config.told else Conditioner(model),
            {"timestep": (f32, ("U",)), "label": (i64, ("U",)), **{name: (f32, ("U",)) for name in config.told}},
            (("modulation", f32, ("U", m)),),
        ),
        GraphSpec(
            "step",
            Step(model),
            step_inputs(latent, m, config.out_channels),
            (("next_state", f32, ("B", "K", *latent)),),
        ),
    ]
    if pixels:
        image = ("B", config.input_size, config.input_size, config.in_channels)
        inputs = {"latent": (f32, ("B", *latent))}
        specs.append(GraphSpec("decoder", PixelDecoder(), inputs, (("image", torch.uint8, image),)))
    return specs


def _example(spec: GraphSpec, sizes: Mapping[str, int], seed: int, largest_timestep: float) -> dict[str, Tensor]:
    """Random inputs of the given dynamic sizes; index inputs stay within every table."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {}
    for name, (dtype, shape) in spec.inputs.items():
        concrete = [sizes[d] if isinstance(d, str) else d for d in shape]
        if dtype == torch.int64:
            inputs[name] = torch.randint(0, 2, concrete, generator=generator)
        elif name in ("row", "column"):
            inputs[name] = torch.arange(concrete[0], dtype=dtype)
        elif name in ("height", "width"):
            inputs[name] = 64 + 1000 * torch.rand(concrete, generator=generator)
        elif name == "guidance":
            inputs[name] = 1 + 9 * torch.rand(concrete, generator=generator)
        elif name in ("timestep", "interval"):
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
    return write_specs(
        _graph_specs(model, pixels), (trace_sizes, check_sizes), max(info.timestep_range), folder, opset, report
    )


def write_specs(
    specs: Sequence[GraphSpec],
    sizes: tuple[Mapping[str, int], Mapping[str, int]],
    largest: float,
    folder: Path,
    opset: int,
    report: Report,
) -> dict[str, GraphInfo]:
    """sizes: of the dynamic dimensions, those to trace with and those to check with. largest: timestep."""
    graphs = {}
    for spec in specs:
        report(f"exporting {spec.name}.onnx")
        path = folder / f"{spec.name}.onnx"
        export_graph(spec, _example(spec, sizes[0], 1, largest), path, opset)
        report(f"checking {spec.name}.onnx against PyTorch")
        _check_graph(spec, _example(spec, sizes[1], 2, largest), path)
        graphs[spec.name] = graph_info(spec, path)
    return graphs


def export_graph(spec: GraphSpec, example: dict[str, Tensor], path: Path, opset: int) -> None:
    dynamic = {
        name: {i: d for i, d in enumerate(shape) if isinstance(d, str)} for name, (_, shape) in spec.inputs.items()
    }
    onnx_from_module(spec.module, example, _names(spec), dynamic, path, opset)


def _names(spec: GraphSpec) -> str | list[str]:
    names = [name for name, _, _ in spec.outputs]
    return names if len(names) > 1 else names[0]


def graph_info(spec: GraphSpec, path: Path) -> GraphInfo:
    return GraphInfo(
        file=path.name,
        inputs=[_tensor_info(name, dtype, shape) for name, (dtype, shape) in spec.inputs.items()],
        outputs=[_tensor_info(*output) for output in spec.outputs],
    )


def _tensor_info(name: str, dtype: torch.dtype, shape: tuple[int | str, ...]) -> TensorInfo:
    return TensorInfo(name=name, dtype=str(dtype).removeprefix("torch."), shape=list(shape))  # type: ignore[arg-type]


def _check_graph(spec: GraphSpec, inputs: dict[str, Tensor], path: Path) -> None:
    for expected, actual in both_outputs(spec, inputs, path):
        error = relative_error(actual, expected)
        if not error <= GRAPH_TOLERANCE:
            raise BundleError(
                f"{path.name} does not compute what PyTorch does: relative error {error:.1e}, "
                f"allowed {GRAPH_TOLERANCE:.0e}"
            )


def both_outputs(spec: GraphSpec, inputs: dict[str, Tensor], path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each output of the module in PyTorch, and of its graph."""
    with torch.no_grad():
        found = spec.module(*inputs.values())
    expected = [tensor.contiguous().numpy() for tensor in (found if isinstance(found, tuple) else (found,))]
    actual = [np.empty_like(values) for values in expected]
    engine = open_engine(path, EngineOptions())
    try:
        names = [name for name, _, _ in spec.outputs]
        given = {name: tensor.numpy() for name, tensor in inputs.items()}
        engine.run(given, dict(zip(names, actual, strict=True)))
    finally:
        engine.close()
    return list(zip(expected, actual, strict=True))


def write_decoder(
    vae: VaeCheckpoint,
    info: ModelInfo,
    folder: Path,
    precision: str,
    opset: int,
    report: Report,
    any_size: bool = False,
) -> GraphInfo:
    """Exports the VAE's decoder in its precision and checks it against the float32 one in PyTorch.

    any_size: for latents of any H x W, not only of the model's input_size.
    """
    report("exporting decoder.onnx")
    config, path = vae.decoder.config, folder / "decoder.onnx"
    decoder = half_precision(vae.decoder) if precision == "float16" else vae.decoder
    latent, picture = _sizes(info, config.factor, any_size)  # as many channels as the VAE's: `read_fitting_vae`
    spec = GraphSpec(
        "decoder",
        LatentDecoder(decoder),
        {"latent": (torch.float32, ("B", *latent))},
        (("image", torch.uint8, ("B", *picture, config.out_channels)),),
    )
    export_graph(spec, {"latent": torch.randn(2, info.in_channels, *_traced(info, any_size))}, path, opset)
    report("checking decoder.onnx against PyTorch")
    check_decoder(path, vae.decoder, info.input_size, precision)
    return graph_info(spec, path)


def _sizes(info: ModelInfo, factor: int, any_size: bool) -> tuple[tuple[int | str, ...], tuple[int | str, int | str]]:
    """The shape of a latent, and height and width of its picture."""
    if any_size:
        return (info.in_channels, "H", "W"), ("h", "w")
    return info.latent_shape, (info.input_size * factor,) * 2


def _traced(info: ModelInfo, any_size: bool) -> tuple[int, int]:
    """H and W: two different ones where they are dynamic, or the exporter takes them for one."""
    return (info.input_size, info.input_size + 2 if any_size else info.input_size)


def write_preview(
    preview: Preview, info: ModelInfo, folder: Path, opset: int, report: Report, any_size: bool = False
) -> GraphInfo:
    """Exports the rough picture of latents and checks it against PyTorch: each number within 1 of 255."""
    report("exporting preview.onnx")
    path, (latent, picture) = folder / "preview.onnx", _sizes(info, preview.scale, any_size)
    spec = GraphSpec(
        "preview",
        preview,
        {"latent": (torch.float32, ("B", *latent))},
        (("image", torch.uint8, ("B", *picture, preview.colours)),),
    )
    height, width = _traced(info, any_size)
    export_graph(spec, _example(spec, {"B": 2, "H": height, "W": width}, 1, 0.0), path, opset)
    inputs = _example(spec, {"B": 3, "H": width, "W": height}, 2, 0.0)
    [(expected, actual)] = both_outputs(spec, inputs, path)
    if np.abs(actual.astype(np.int16) - expected).max() > 1:
        raise BundleError(f"{path.name} does not compute what PyTorch does: pictures differ by more than 1 of 255")
    return graph_info(spec, path)
