"""Checkpoint in, bundle out: export, check against PyTorch, record golden trajectories, hash, hand over.

Everything is written into a temporary folder beside the target and renamed at the end: a bundle that failed any check
never appears.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # noqa: F401  # every export is checked with it: missing, it should be missed now
import torch
from torch import Tensor, nn

from ditedge import __version__

from ..runtime.bundle import open_bundle
from ..runtime.engine import Engine, EngineOptions, open_engine
from ..runtime.errors import BundleError, DitedgeError, RequestError
from ..runtime.files import write_tensors, write_text
from ..runtime.manifest import (
    MANIFEST_NAME,
    DefaultsInfo,
    GoldenInfo,
    GraphInfo,
    Manifest,
    ModelInfo,
    PreviewInfo,
    ScheduleInfo,
    TensorInfo,
    VaeInfo,
)
from ..runtime.new_bundle import check_target, hashed_files, new_folder
from ..runtime.programs import write_program
from ..runtime.sampler import Sampler, SeededNoise
from ..runtime.samplers.settings import SamplerSettings, make_program
from ..runtime.schedule import respaced_timesteps, schedule_from_info
from ..runtime.verify import relative_error, replay
from .betas import DDPM_SCHEDULE, read_betas
from .checkpoint import Checkpoint
from .decoder import check_decoder, fitted_preview, plain_preview
from .diffusers_folder import vae_folder
from .graphs import Conditioner, LatentDecoder, PixelDecoder, Step
from .network import Network
from .reference import flow_trajectory, guided_output, reference_trajectory, trained_alphas_cumprod
from .sources import read_source
from .to_onnx import DEFAULT_OPSET, onnx_from_module
from .vae import half_precision
from .vae_checkpoint import VaeCheckpoint, read_vae

GRAPH_TOLERANCE = 2e-5  # float32 against float32, sums in another order: DiT-XL/2 measures 2e-6
GOLDEN_TOLERANCE = 1e-4  # relative error at any step of a float32 trajectory; measured below 1e-5
GOLDEN_GUIDANCE = 4.0
DEFAULT_STEPS = 20  # of DPM-Solver++: what the table of docs/samplers.md says
LARGE_MODEL = 200_000_000  # parameters above which golden trajectories are shortened


@dataclass(frozen=True)
class ExportOptions:
    """What a user may decide about a bundle."""

    heads: int | None = None  # None: the standard size's
    image_size: int | None = None  # pixels; None: what the checkpoint says
    labels: tuple[str, ...] = ()  # class names; empty: numbers only
    null_class: bool | None = None  # None: as the checkpoint was trained, else yes
    guided_channels: int | None = None  # None: 3, the habit of facebookresearch/DiT; all for a diffusers folder
    prediction: str | None = None  # None: what the source says, else epsilon; "flow-to-data" is SiT
    betas: str | None = None  # of training, see `read_betas`; None: what the source says, else DDPM's
    zero_terminal_snr: bool = False  # the betas were rescaled so that the last timestep is pure noise
    model: str | None = None  # package.module:factory of a custom network; None: DiT
    vae: Path | None = None  # folder or file of the VAE whose latents the model makes; None: no pictures
    vae_precision: str = "float32"  # or "float16"
    opset: int = DEFAULT_OPSET
    force: bool = False  # replace an existing bundle


def bundle_from_checkpoint(
    source: Path, out: Path, options: ExportOptions, report: Callable[[str], None] = lambda _: None
) -> Manifest:
    """Exports the checkpoint or diffusers folder `source` to the bundle folder `out`.

    report: told what is being done. Raises CheckpointError (source), RequestError (options, out), BundleError when an
    exported graph does not compute what PyTorch does; then nothing is left behind.
    """
    check_target(out, options.force)
    report(f"reading {source}")
    checkpoint = read_source(
        source,
        heads=options.heads,
        null_class=options.null_class,
        image_size=options.image_size,
        model=options.model,
        prediction=options.prediction,
    )
    checkpoint = _with_betas(checkpoint, options)
    info = _model_info(checkpoint, options)
    schedule = None if info.prediction == "flow-to-data" else checkpoint.schedule or DDPM_SCHEDULE
    vae = _read_vae(options, info, source)
    labels = options.labels or checkpoint.labels
    if labels and len(labels) != info.num_classes:
        raise RequestError(
            f"{len(labels)} class names for {info.num_classes} classes"
            + (
                "; was it trained without label dropout? then give --no-null-class"
                if options.null_class is None
                else ""
            )
        )
    with new_folder(out, options.force) as folder:
        model = checkpoint.model()
        graphs = _write_graphs(model, info, folder, options.opset, report)
        if vae is not None:
            graphs["decoder"] = _write_decoder(vae, info, folder, options, report)
        programs, default = _write_programs(info, schedule, checkpoint.sampling, folder)
        report("recording golden trajectories with PyTorch")
        golden = _write_golden(model, info, schedule, folder)
        del model
        manifest = Manifest(
            format="ditedge-bundle",
            version=1,
            name=out.name,
            made_by=f"ditedge {__version__}",
            source_sha256=checkpoint.sha256,
            model=info,
            schedule=schedule,
            labels=list(labels),
            graphs=graphs,  # type: ignore[arg-type]  # pydantic checks the names
            programs=programs,
            golden=golden,
            vae=_vae_info(vae, options) if vae is not None else None,
            preview=_preview_info(info, vae),
            defaults=DefaultsInfo(program=default, guidance=GOLDEN_GUIDANCE if info.null_class is not None else 1.0),
            files=hashed_files(folder),
        )
        del checkpoint, vae
        write_text(folder / MANIFEST_NAME, manifest.model_dump_json(indent=1) + "\n")
        report("replaying them through the bundle")
        replay_golden(folder)
    return manifest


def _with_betas(checkpoint: Checkpoint, options: ExportOptions) -> Checkpoint:
    """The checkpoint with the betas of --betas and --zero-terminal-snr, which replace what its folder says."""
    if options.betas is None and not options.zero_terminal_snr:
        return checkpoint
    if checkpoint.prediction == "flow-to-data":
        raise RequestError("--betas and --zero-terminal-snr are for diffusion models: a flow model has no betas")
    if options.zero_terminal_snr and checkpoint.prediction == "epsilon":
        raise RequestError("--zero-terminal-snr: epsilon says nothing where no data is left; give --prediction v or x0")
    schedule = read_betas(options.betas or "linear", options.zero_terminal_snr)
    return replace(checkpoint, schedule=schedule, sampling={})


def _model_info(checkpoint: Checkpoint, options: ExportOptions) -> ModelInfo:
    config = checkpoint.config
    guided = options.guided_channels
    if guided is None:
        guided = checkpoint.guided_channels or min(3, config.in_channels)
    if not 1 <= guided <= config.in_channels:
        raise RequestError(f"--guided-channels {guided} is not between 1 and the model's {config.in_channels} channels")
    last_timestep = float((checkpoint.schedule or DDPM_SCHEDULE).steps - 1)
    return ModelInfo(
        architecture="dit" if checkpoint.module is None else "custom",
        input_size=config.input_size,
        patch_size=config.patch_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        hidden_size=config.hidden_size,
        depth=config.depth,
        num_heads=config.num_heads,
        num_classes=config.num_classes,
        null_class=config.num_classes if config.null_class else None,
        learned_variance=config.learn_sigma,
        prediction=checkpoint.prediction,  # type: ignore[arg-type]  # pydantic checks it
        guided_channels=guided,
        parameters=sum(tensor.numel() for tensor in checkpoint.weights.values()),
        timestep_range=(0.0, 1.0) if checkpoint.prediction == "flow-to-data" else (last_timestep, 0.0),
        frequency_divisor=config.frequency_divisor,
        mlp_norm_eps=config.mlp_norm_eps,
    )


def _works_on_pixels(channels: int) -> bool:
    return channels in (1, 3)


def _read_vae(options: ExportOptions, info: ModelInfo, source: Path) -> VaeCheckpoint | None:
    """The VAE of --vae or of a diffusers pipeline folder, checked to fit the model."""
    folder = options.vae or (vae_folder(source) if source.is_dir() else None)
    if folder is None:
        return None
    if _works_on_pixels(info.in_channels):
        raise RequestError(f"--vae {folder}: the model makes pixels ({info.in_channels} channels), not latents")
    vae = read_vae(folder)
    config = vae.decoder.config
    if config.latent_channels != info.in_channels or config.out_channels not in (1, 3):
        raise RequestError(
            f"--vae {folder}: it decodes {config.latent_channels} channels to {config.out_channels}, "
            f"the model makes {info.in_channels} and a picture has 1 or 3"
        )
    return vae


def _vae_info(vae: VaeCheckpoint, options: ExportOptions) -> VaeInfo:
    return VaeInfo(
        kind=vae.kind,
        source_sha256=vae.sha256,
        precision=options.vae_precision,  # type: ignore[arg-type]  # pydantic checks it
        scaling_factor=vae.decoder.config.scaling_factor,
        shift_factor=vae.decoder.config.shift_factor,
    )


def _preview_info(info: ModelInfo, vae: VaeCheckpoint | None) -> PreviewInfo | None:
    """None where the decoder itself is quick enough for previews: pixels, and tiny decoders."""
    if _works_on_pixels(info.in_channels) or (vae is not None and vae.kind == "tiny"):
        return None
    return fitted_preview(vae.decoder) if vae is not None else plain_preview(info.in_channels)


def _write_decoder(
    vae: VaeCheckpoint, info: ModelInfo, folder: Path, options: ExportOptions, report: Callable[[str], None]
) -> GraphInfo:
    """Exports the VAE's decoder in its precision and checks it against the float32 one in PyTorch."""
    report("exporting decoder.onnx")
    config, path = vae.decoder.config, folder / "decoder.onnx"
    decoder = half_precision(vae.decoder) if options.vae_precision == "float16" else vae.decoder
    latent = (config.latent_channels, info.input_size, info.input_size)
    picture = (info.input_size * config.factor,) * 2
    spec = _GraphSpec(
        "decoder",
        LatentDecoder(decoder),
        {"latent": (torch.float32, ("B", *latent))},
        ("image", torch.uint8, ("B", *picture, config.out_channels)),
    )
    _export_graph(spec, {"latent": torch.randn(2, *latent)}, path, options.opset)
    report("checking decoder.onnx against PyTorch")
    check_decoder(path, vae.decoder, info.input_size, options.vae_precision)
    return _graph_info(spec, path)


@dataclass(frozen=True)
class _GraphSpec:
    """One graph to export. inputs: name -> (dtype, shape); letters are dynamic sizes."""

    name: str
    module: nn.Module
    inputs: Mapping[str, tuple[torch.dtype, tuple[int | str, ...]]]
    output: tuple[str, torch.dtype, tuple[int | str, ...]]


def _graph_specs(model: Network) -> list[_GraphSpec]:
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
    if _works_on_pixels(config.in_channels):
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


def _write_graphs(
    model: Network, info: ModelInfo, folder: Path, opset: int, report: Callable[[str], None]
) -> dict[str, GraphInfo]:
    """Exports each graph and checks it against PyTorch at other sizes than those it was traced with."""
    trace_sizes = {"B": 2, "K": 3, "K+2": 5, "E": 4, "U": 7}
    check_sizes = {"B": 3, "K": 1, "K+2": 3, "E": 2, "U": 5}
    graphs, largest = {}, max(info.timestep_range)
    for spec in _graph_specs(model):
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
    with torch.no_grad():
        expected = spec.module(*inputs.values()).contiguous().numpy()
    actual = np.empty_like(expected)
    engine = open_engine(path, EngineOptions())
    try:
        engine.run({name: tensor.numpy() for name, tensor in inputs.items()}, {spec.output[0]: actual})
    finally:
        engine.close()
    error = relative_error(actual, expected)
    if not error <= GRAPH_TOLERANCE:
        raise BundleError(
            f"{path.name} does not compute what PyTorch does: relative error {error:.1e}, allowed {GRAPH_TOLERANCE:.0e}"
        )


def _golden_steps(info: ModelInfo) -> int:
    return 4 if info.parameters > LARGE_MODEL else 10


def _write_programs(
    info: ModelInfo, schedule: ScheduleInfo | None, sampling: dict[str, Any], folder: Path
) -> tuple[dict[str, str], str]:
    """Ready programs -> name and file of each, and the default's name. sampling: the source's settings, or empty."""
    (folder / "programs").mkdir()
    betas = schedule_from_info(schedule) if schedule is not None else None
    golden = _golden_steps(info)
    if schedule is None:
        wanted, default = [("flow-euler", steps) for steps in (250, 50, 25, golden)], "flow-euler-50"
    else:
        wanted = [("dpm++", DEFAULT_STEPS), ("ddpm", 250), ("ddpm", 50), ("ddim", 50), ("ddim", 25)]
        default = f"dpm++-{DEFAULT_STEPS}"
        wanted = [(name, steps) for name, steps in wanted if steps <= schedule.steps]
        wanted += [("ddpm", golden), ("ddim", golden)]
    settings: list[dict[str, Any]] = [{"sampler": sampler, "steps": steps} for sampler, steps in wanted]
    programs = {}
    for chosen in [*settings, sampling] if sampling else settings:
        program = make_program(
            betas,
            SamplerSettings(**chosen),
            learned_variance=info.learned_variance,
            prediction=info.prediction,
            timestep_range=info.timestep_range,
        )
        programs[program.name] = f"programs/{program.name}.json"
        write_program(program, folder / programs[program.name])  # the source's own replaces one of the same name
        default = program.name if chosen is sampling else default
    return programs, default


def _write_golden(model: Network, info: ModelInfo, schedule: ScheduleInfo | None, folder: Path) -> list[GoldenInfo]:
    """Trajectories of the plain PyTorch sampler: DDPM guided (where the model can) and DDIM not; or flow, both ways."""
    (folder / "golden").mkdir()
    steps = _golden_steps(info)
    labels = [0, info.num_classes - 1] if info.parameters <= LARGE_MODEL else [0]
    source = SeededNoise(list(range(len(labels))), (info.in_channels, info.input_size, info.input_size))
    z = torch.from_numpy(source.initial())
    noise = torch.from_numpy(np.stack([source.step(i) for i in range(steps)]))
    y = torch.tensor(labels)
    most, golden = GOLDEN_GUIDANCE if info.null_class is not None else 1.0, []
    runs = {"ddpm": ("ddpm", most), "ddim": ("ddim", 1.0)}
    if schedule is None:
        runs = {"flow-euler": ("flow-euler", most), "flow-euler-unguided": ("flow-euler", 1.0)}
    for run, (sampler, guidance) in runs.items():

        def network(x: Tensor, t: float, guidance: float = guidance) -> Tensor:
            return guided_output(model, x, t, y, guidance, info.guided_channels)

        if schedule is None:
            x = flow_trajectory(network, z, steps)
        else:
            x = reference_trajectory(
                network,
                z,
                noise,
                respaced_timesteps(str(steps), schedule.steps).tolist(),
                sampler,
                info.learned_variance,
                info.prediction,
                trained_alphas_cumprod(schedule),
            )
        file = f"golden/{run}-{steps}.safetensors"
        tensors = {"z": z, "noise": noise, "y": y, "x": x}
        write_tensors(folder / file, {k: v.numpy() for k, v in tensors.items()})
        program = f"{sampler}-{steps}"
        golden.append(GoldenInfo(file=file, program=program, guidance=guidance, tolerance=GOLDEN_TOLERANCE))
    return golden


def replay_golden(folder: Path, engines: Mapping[str, Engine] | None = None) -> None:
    """Raises BundleError when the graphs in `folder`, or `engines`, leave a golden trajectory."""
    try:
        bundle = open_bundle(folder, check_hashes=False)  # written a moment ago, and hashed from the same files
        with Sampler(bundle, engines=engines) as sampler:
            for golden in bundle.manifest.golden:
                result = replay(sampler, golden)
                if not result.passed:
                    worst = float(np.max(result.error))
                    raise BundleError(
                        f"the exported graphs leave PyTorch's {golden.program} trajectory: "
                        f"relative error {worst:.1e}, allowed {golden.tolerance:.0e}"
                    )
    except DitedgeError as error:
        raise BundleError(f"export failed its own check, nothing was written: {error}") from None
