"""Checkpoint in, bundle out: export, check against PyTorch, record golden trajectories, hash, hand over.

Everything is written into a temporary folder beside the target and renamed at the end: a bundle that failed any check
never appears.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime  # noqa: F401  # every export is checked with it: missing, it should be missed now

from ..calibration.convert import convert_bundle
from ..calibration.options import ConvertOptions
from ..runtime.bundle.manifest import DefaultsInfo, Manifest, ModelInfo
from ..runtime.bundle.open import open_bundle
from ..runtime.bundle.writing import check_target, new_bundle
from ..runtime.errors import RequestError
from ..runtime.loop.verify import check_replayed, replay_golden
from ..runtime.replacing import scratch_beside
from ..runtime.report import Report, silent
from ..runtime.samplers.process import NO_BETAS
from ..runtime.samplers.program import Program
from ..runtime.samplers.schedule import ScheduleInfo
from .graphs.write import write_graphs
from .manifests import model_info, write_manifest
from .options import ExportOptions, vae_dtype
from .pictures import image_graphs, note_on_pictures, vae_info, vae_of, vae_path, works_on_pixels, write_pictures
from .prompt_exporter import prompt_bundle
from .sources.betas import DDPM_SCHEDULE
from .sources.checkpoint import Checkpoint
from .sources.families import family_of
from .sources.lora import read_lora, read_with
from .sources.merging import Lora
from .sources.read import read_source
from .sources.vae_checkpoint import VaeCheckpoint, read_vae
from .truth.golden import GOLDEN_GUIDANCE, write_golden
from .truth.programs import given_programs, golden_steps, write_programs


@dataclass(frozen=True)
class _Ready:
    """All that a bundle is written from, read and checked."""

    checkpoint: Checkpoint
    info: ModelInfo
    schedule: ScheduleInfo | None  # None: a flow model
    vae: VaeCheckpoint | None
    pixels: bool
    labels: tuple[str, ...]
    programs: tuple[Program, ...]  # what the user gave
    notes: tuple[str, ...]


def bundle_from_checkpoint(
    source: Path,
    out: Path,
    options: ExportOptions,
    report: Report = silent,
    note: Callable[[str], object] = silent,
) -> Manifest:
    """Exports the checkpoint or diffusers folder `source` to the bundle folder `out`.

    report: told what is being done. note: told, before the work, what the user should know and may want to change.
    Raises CheckpointError (source), RequestError (options, out), BundleError when an exported graph does not compute
    what PyTorch does; then nothing is left behind.
    """
    family = family_of(source, options.heads, options.image_size)
    if family is not None:
        return prompt_bundle(family, source, out, options, report, note)
    loras = [read_lora(text) for text in options.lora]
    inputs = [path for path in (source, options.vae, *(lora.path for lora in loras)) if path is not None]
    check_target(out, options.force, inputs)
    report(f"reading {source}")
    ready = _read(source, options, loras)
    for text in ready.notes:
        note(text)
    with new_bundle(out, options.force, inputs) as folder:
        manifest = _write(ready, folder, out.name, options, report)
        del ready  # a large model's weights: the replay needs their memory
        for result in replay_golden(open_bundle(folder, check_hashes=False, trusted_keys=()), report=report):
            check_replayed(result, result.allowed)
    return manifest


def bundle_in_precision(
    source: Path,
    out: Path,
    options: ExportOptions,
    precision: str,
    report: Report = silent,
    note: Callable[[str], object] = silent,
) -> Manifest:
    """`bundle_from_checkpoint`, then `convert_bundle`; the float32 bundle lives in a temporary folder beside `out`."""
    if family_of(source) is not None:
        raise RequestError(f"--precision {precision}: models that take prompts are written in float32 so far")
    check_target(out, options.force, [source])
    with scratch_beside(out) as scratch:
        bundle_from_checkpoint(source, scratch / "float32", options, report, note)
        return convert_bundle(scratch / "float32", out, ConvertOptions(precision, force=options.force), report)


def _read(source: Path, options: ExportOptions, loras: Sequence[Lora]) -> _Ready:
    factor = _known_factor(options, source)
    checkpoint = read_with(loras, lambda: read_source(source, **options.asked(), factor=factor))
    info = _model_info(checkpoint, options)
    vae = vae_of(options, info, source)
    pixels = vae is None and works_on_pixels(info, options.pixels, options.image_size or checkpoint.image_size)
    if options.encoder and vae is None and not pixels:
        raise RequestError("--encoder turns pictures into latents by a VAE: give --vae, too")
    labels = options.labels or checkpoint.labels
    if labels and len(labels) != info.num_classes:
        why = "; was it trained without label dropout? then give --no-null-class" if options.null_class is None else ""
        raise RequestError(f"{len(labels)} class names for {info.num_classes} classes{why}")
    hint = note_on_pictures(info, pixels, options.pixels is not None) if vae is None else None
    schedule = None if info.prediction in NO_BETAS else checkpoint.schedule or DDPM_SCHEDULE
    return _Ready(
        checkpoint,
        info,
        schedule,
        vae,
        pixels,
        labels,
        given_programs(options.program, info, schedule),
        (*checkpoint.notes, *(vae.notes if vae is not None else ()), *([hint] if hint else [])),
    )


def _write(ready: _Ready, folder: Path, name: str, options: ExportOptions, report: Report) -> Manifest:
    """Graphs, programs, golden trajectories and manifest into `folder`."""
    info, vae, model = ready.info, ready.vae, ready.checkpoint.model()
    precision = vae_dtype(options.vae_precision)
    graphs = write_graphs(model, info, ready.pixels, folder, options.opset, report)
    graphs |= write_pictures(vae, info, ready.pixels, folder, precision, options.opset, report)
    if options.encoder:
        graphs |= image_graphs(vae, info, folder, options.opset, report)
    steps = golden_steps(info, options.golden_steps)
    sampling = ready.checkpoint.sampling
    programs, default = write_programs(info, ready.schedule, sampling, folder, steps, given=ready.programs)
    golden = write_golden(model, info, ready.schedule, folder, steps, report)
    guidance = ready.checkpoint.guidance or GOLDEN_GUIDANCE
    return write_manifest(
        folder,
        name=name,
        source_sha256=ready.checkpoint.sha256,
        model=info,
        schedule=ready.schedule,
        labels=list(ready.labels),
        graphs=graphs,
        programs=programs,
        golden=golden,
        vae=vae_info(vae, precision) if vae is not None else None,
        defaults=DefaultsInfo(program=default, guidance=1.0 if info.null_class is None else guidance),
    )


def _model_info(checkpoint: Checkpoint, options: ExportOptions) -> ModelInfo:
    config = checkpoint.config
    guided = options.guided_channels
    if guided is None:
        guided = checkpoint.guided_channels or min(3, config.in_channels)
    if not 1 <= guided <= config.in_channels:
        raise RequestError(f"--guided-channels {guided} is not between 1 and the model's {config.in_channels} channels")
    last_timestep = float((checkpoint.schedule or DDPM_SCHEDULE).steps - 1)
    return model_info(
        checkpoint,
        architecture="dit" if checkpoint.module is None else "custom",
        input_size=config.input_size,
        num_classes=config.num_classes,
        null_class=config.num_classes if config.null_class else None,
        guided_channels=guided,
        timestep_range=NO_BETAS.get(str(checkpoint.prediction), (last_timestep, 0.0)),
        frequency_divisor=config.frequency_divisor,
        mlp_norm_eps=config.mlp_norm_eps,
        mlp_ratio=config.mlp_ratio,
    )


def _known_factor(options: ExportOptions, source: Path) -> int | None:
    """Picture pixels per pixel of the network, where --image-size is to be compared with it."""
    path = vae_path(options, source)
    if options.image_size is None or path is None:
        return 1 if options.pixels else None
    return read_vae(path).decoder.config.factor
