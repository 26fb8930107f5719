"""The `run` command as a function: a request with every option, files out, a summary."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ditedge import __version__

from ..bundle.open import Bundle, open_bundle
from ..errors import NotFiniteError, RequestError
from ..files import check_writable, sha256_of_file, write_tensors
from ..loop.engine import options_for
from ..loop.generate import Progress, generate, read_noise
from ..loop.noise import GivenNoise
from ..loop.session import Session
from ..samplers.process import check_process
from ..samplers.program import Program, read_program, with_x0_slot, write_program
from ..samplers.settings import SamplerSettings, guidance_interval_from_text
from .images import check_metadata_fits, grid, picture_bytes, picture_format, write_picture
from .outputs import Output, check_memory, check_tensor_file, picture_output
from .preview import Previews, check_previews, preview_path
from .recipe import program_file_metadata, recipe_of_picture

DEFAULT_IMAGES = 8  # without --class and --count: one image of each of the first classes


@dataclass(frozen=True)
class RunRequest:
    """Everything `ditedge run` can be told; None means the bundle's default."""

    engine: Path
    trusted_keys: tuple[Path, ...] = ()  # PEM files; none: those of $DITEDGE_TRUSTED_KEYS, if any
    classes: tuple[str, ...] = ()
    away_from: tuple[str, ...] = ()
    count: int | None = None
    seed: int = 0
    steps: int | None = None
    sampler: str | None = None
    respacing: str | None = None
    spacing: str | None = None
    sigmas: str | None = None
    order: int | None = None
    shift: float | None = None
    eta: float | None = None
    variance: str | None = None
    clip_x0: bool = False
    program: str | None = None  # name of a ready program, or a program file
    force_program: bool = False  # also when it was made for another process than the model's
    guidance: float | None = None
    guidance_interval: str | None = None  # "LO,HI" in sigma, or "tLO,tHI" in timesteps
    batch: int = 8
    threads: int = 0
    spin: bool = False
    check_finite: bool = False  # after every step
    provider: str = "cpu"
    noise: Path | None = None
    save_latents: Path | None = None
    save_trajectory: Path | None = None
    save_program: Path | None = None
    like: Path | None = None
    preview_every: int | None = None
    out: Path | None = None


@dataclass(frozen=True)
class _Plan:
    """A request resolved against its bundle: what will be sampled, and where it goes."""

    bundle: Bundle
    program: Program
    labels: list[int]
    away_from: list[int] | None
    seeds: list[int]
    columns: int | None  # of the grid; None is the squarest
    guidance: float
    noise: GivenNoise | None
    out: Output | None  # None: only latents are wanted
    program_file: dict[str, str]  # name and hash of the file that the program came from; empty without

    @property
    def rough(self) -> bool:
        """Without a decoder, pictures are linear projections of the latents."""
        return "decoder" not in self.bundle.manifest.graphs


def run_bundle(
    request: RunRequest, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Samples, writes every file asked for, and returns the summary. on_progress: (steps done, steps in all).

    When pictures overflowed it raises NotFiniteError, with the summary, after the good ones were written: a grid has
    the others black, a folder has no file of them.
    """
    request, plan = _plan(request)
    trajectory: list[np.ndarray] = []

    def on_step(progress: Progress) -> None:
        if request.save_trajectory:
            trajectory.append(progress.latents.copy())
        if previews is not None:
            previews.on_progress(progress)
        on_progress(progress.done, progress.total)

    options = options_for(request.engine, request.provider, request.threads, request.spin)
    with Session(plan.bundle, options) as session:
        for graph in ("step", "conditioner"):
            session.load(graph)  # loading is not sampling: keep it out of the timing
        previews = _previews(request, plan, session)
        start = time.perf_counter()
        latents, broken = _latents(
            plan.bundle,
            plan.labels,
            plan.seeds,
            program=plan.program if previews is None else with_x0_slot(plan.program),
            guidance=plan.guidance,
            away_from=plan.away_from,
            batch=request.batch,
            output="latents",
            noise=plan.noise,
            on_progress=on_step,
            session=session,
            force_program=True,  # looked at when the request was
            check_finite=request.check_finite,
        )
        bad = [image.index for image in broken.images] if broken is not None else []
        images = None
        if plan.out is not None:
            shown = latents.copy()
            shown[bad] = 0
            parts = [shown[i : i + request.batch] for i in range(0, len(latents), request.batch)]
            pictures = session.preview if plan.rough else session.images
            images = np.concatenate([pictures(part) for part in parts])
            images[bad] = 0
        seconds = time.perf_counter() - start
    written = [*previews.written] if previews is not None else []
    written += _write_tensor_files(request, plan, latents, trajectory)
    if images is not None and len(bad) < len(images):
        written += _write_images(request, plan, images, skip=bad)
    if request.save_program:
        write_program(plan.program, request.save_program)
        written.append(request.save_program)
    summary = {
        "bundle": str(plan.bundle.folder),
        "bundle_sha256": plan.bundle.sha256,
        "images": len(plan.labels),
        "labels": plan.labels,
        "seeds": plan.seeds if plan.noise is None else None,
        "program": plan.program.name,
        "steps": plan.program.steps,
        "made": plan.program.made,
        "guidance": plan.guidance,
        "provider": request.provider if request.engine.suffix != ".plan" else "plan",
        "seconds": seconds,
        "seconds_per_image": seconds / len(plan.labels),
        "written": [str(path) for path in written],
        "rough": plan.rough and plan.out is not None,
        "not_finite": [asdict(image) for image in broken.images] if broken is not None else [],
    }
    if broken is not None:
        broken.summary = summary
        raise broken
    return summary


def _latents(*arguments: Any, **options: Any) -> tuple[np.ndarray, NotFiniteError | None]:
    """What `generate` makes, and what it says of pictures that overflowed."""
    try:
        return generate(*arguments, **options), None
    except NotFiniteError as error:
        return error.results, error


def _plan(request: RunRequest) -> tuple[RunRequest, _Plan]:
    """The request, with the names of files that it left open, and what it comes to."""
    bundle = open_bundle(request.engine, trusted_keys=request.trusted_keys or None)
    options_for(request.engine, request.provider)  # raises when they do not go together
    if request.like is not None:
        _check_like(request)
        program_file = Path(request.program) if request.program else None
        recipe = recipe_of_picture(request.like, bundle, program_file)
        labels, seeds, away_from = recipe.labels, recipe.seeds, recipe.away_from
        guidance, program = recipe.guidance, recipe.program
    else:
        labels = _labels(request, bundle)
        seeds = [request.seed + i for i in range(len(labels))]
        others = [bundle.label(text) for text in request.away_from]
        away_from = [others[i % len(others)] for i in range(len(labels))] if others else None
        guidance = bundle.manifest.defaults.guidance if request.guidance is None else request.guidance
        program, program_file = _program(request, bundle)
    noise = read_noise(request.noise) if request.noise else None
    if noise is not None and not request.classes and request.count is None:
        labels = [i % bundle.manifest.model.num_classes for i in range(len(noise.z))]
        seeds = [0] * len(labels)
    request, out = _output(request, bundle)
    for path in (request.save_latents, request.save_trajectory):
        if path is not None:
            check_tensor_file(path)
    if request.save_program is not None:
        check_writable(request.save_program)
    if request.preview_every is not None:
        check_previews(bundle, program, request.preview_every)
        if out is not None and out.kind == "stdout":
            raise RequestError("--preview-every writes files beside the picture: give -o a name")
    check_memory(bundle, len(labels), program.steps if request.save_trajectory else 1)
    source = program_file_metadata(program_file) if program_file is not None else {}
    plan = _Plan(bundle, program, labels, away_from, seeds, _columns(labels), guidance, noise, out, source)
    if out is not None and out.kind == "picture":
        check_metadata_fits(picture_format(out.path), _metadata(request, plan, slice(0, len(labels)), None))
    return request, plan


def _settings(request: RunRequest) -> dict[str, Any]:
    return {field.name: getattr(request, field.name) for field in fields(SamplerSettings)}


def _interval(request: RunRequest, bundle: Bundle) -> tuple[float, float] | None:
    text = request.guidance_interval
    schedule = bundle.schedule
    if text is not None and schedule is None:
        raise RequestError("a guidance interval is for diffusion models: a flow has no sigma schedule to speak of")
    return None if text is None or schedule is None else guidance_interval_from_text(text, schedule)


def _program(request: RunRequest, bundle: Bundle) -> tuple[Program, Path | None]:
    """From sampler settings, a ready program's name, or a program file, which is returned, too."""
    if request.program is None or request.program in bundle.manifest.programs:
        settings = _settings(request) | {"guidance_interval": _interval(request, bundle)}
        return bundle.program(request.program, **settings), None
    if any(_settings(request).values()):
        raise RequestError(f"program '{request.program}' is ready-made: leave sampler, steps and their like out")
    if not Path(request.program).is_file():
        raise RequestError(
            f"program '{request.program}' is neither a file nor in the bundle, which has "
            f"{', '.join(bundle.manifest.programs)}"
        )
    program = read_program(Path(request.program))
    if not request.force_program:
        remedy = "make one for this model, or insist with --force-program"
        check_process(request.program, program.process, bundle.process, remedy)
    return program, Path(request.program)


def _labels(request: RunRequest, bundle: Bundle) -> list[int]:
    chosen = [bundle.label(text) for text in request.classes]
    if not chosen:
        chosen = list(range(bundle.manifest.model.num_classes))
        count = request.count or min(DEFAULT_IMAGES, len(chosen))
    else:
        count = request.count or len(chosen)
    return [chosen[i % len(chosen)] for i in range(count)]


def _columns(labels: list[int]) -> int | None:
    """One column per class when the labels go round more than once, else the squarest grid."""
    period = next((i for i in range(1, len(labels)) if labels[i] == labels[0]), len(labels))
    return period if 1 < period < len(labels) else None


def _check_like(request: RunRequest) -> None:
    """--like and everything that the picture says itself."""
    asked = [request.classes, request.away_from, request.count, request.seed, request.guidance, request.noise]
    if any(asked) or any(_settings(request).values()):
        raise RequestError("--like takes classes, seeds and settings from the picture: leave the other options out")


def _output(request: RunRequest, bundle: Bundle) -> tuple[RunRequest, Output | None]:
    """Where pictures go; checked now rather than after the sampling.

    Latents that nothing decodes are kept: a run that names no file leaves them beside a rough picture.
    """
    out, saves = request.out, request.save_latents or request.save_trajectory
    if "decoder" not in bundle.manifest.graphs:
        if bundle.manifest.preview is None and out is not None:
            bundle.require("decoder")  # raises, with the remedy
        if out is None and not saves:
            request = replace(request, save_latents=Path(f"{bundle.folder.absolute().name}.safetensors"))
            out = Path(f"{bundle.folder.absolute().name}.png") if bundle.manifest.preview is not None else None
    elif out is None and not saves:
        out = Path(f"{bundle.folder.absolute().name}.png")
    return request, None if out is None else picture_output(out)


def _write_tensor_files(
    request: RunRequest, plan: _Plan, latents: np.ndarray, trajectory: list[np.ndarray]
) -> list[Path]:
    written = []
    y = np.array(plan.labels, dtype=np.int64)
    if request.save_latents:
        write_tensors(request.save_latents, {"latents": latents, "y": y})
        written.append(request.save_latents)
    if request.save_trajectory:
        steps = plan.program.steps
        batches = [np.stack(trajectory[i : i + steps]) for i in range(0, len(trajectory), steps)]
        x = np.concatenate(batches, axis=1)
        write_tensors(request.save_trajectory, {"x": x, "y": y, "timesteps": plan.program.timestep})
        written.append(request.save_trajectory)
    return written


def _write_images(
    request: RunRequest,
    plan: _Plan,
    images: np.ndarray,
    step: int | None = None,
    first: int = 0,
    skip: Sequence[int] = (),
) -> list[Path]:
    """The pictures, or the previews of a step: then of the first images only, those before `first` written already.

    skip: pictures that get no file of their own.
    """
    kind = plan.out.kind if plan.out is not None else "picture"
    place = plan.out.path if plan.out is not None else request.save_latents or request.save_trajectory
    assert place is not None
    if kind == "folder":
        return _write_each(request, plan, place, images, step, sorted({*range(first, len(images))} - {*skip}))
    metadata = _metadata(request, plan, slice(0, len(images)), step)
    if kind == "npz" and step is None:
        arrays = {"images": images, "y": np.array(plan.labels), "ditedge": np.array(json.dumps(metadata))}
        write_tensors(place, arrays)
        return [place]
    picture = (
        images[0] if len(plan.labels) == 1 else grid(images, plan.columns or int(np.ceil(len(plan.labels) ** 0.5)))
    )
    if kind == "stdout":
        sys.stdout.buffer.write(picture_bytes("PNG", picture, metadata))
        sys.stdout.buffer.flush()
        return [place]
    path = place if step is None else preview_path(place, step)
    write_picture(path, picture, metadata)
    return [path]


def _write_each(
    request: RunRequest, plan: _Plan, folder: Path, images: np.ndarray, step: int | None, chosen: Sequence[int]
) -> list[Path]:
    """One PNG per image, named by its place, class and seed."""
    digits, written = len(str(len(plan.labels) - 1)), []
    for i in chosen:
        path = folder / f"{i:0{max(4, digits)}d}-class{plan.labels[i]}-seed{plan.seeds[i]}.png"
        path = path if step is None else preview_path(path, step)
        write_picture(path, images[i], _metadata(request, plan, slice(i, i + 1), step))
        written.append(path)
    return written


def _previews(request: RunRequest, plan: _Plan, session: Session) -> Previews | None:
    if request.preview_every is None:
        return None

    def write(step: int, images: np.ndarray, first: int) -> list[Path]:
        return _write_images(request, plan, images, step, first)

    return Previews(session, request.preview_every, plan.program.steps, write)


def _metadata(request: RunRequest, plan: _Plan, images: slice, step: int | None) -> dict[str, Any]:
    """What it takes to make these images again. step: of a preview."""
    labels = plan.labels[images]
    return {
        "software": f"ditedge {__version__}",
        "bundle": plan.bundle.manifest.name,
        "bundle_sha256": plan.bundle.sha256,
        "labels": labels,
        "classes": [plan.bundle.label_name(label) for label in labels],
        "away_from": plan.away_from[images] if plan.away_from else None,
        "seeds": plan.seeds[images] if plan.noise is None else None,
        "noise_sha256": sha256_of_file(request.noise) if request.noise else None,
        "program": plan.program.name,
        "made": plan.program.made,
        "guidance": plan.guidance,
        **plan.program_file,
        **({"rough": True} if plan.rough and plan.out is not None else {}),
        **({} if step is None else {"preview_step": step}),
    }
