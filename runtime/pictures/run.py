"""The `run` command as a function: a request with every option, files out, a summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NotFiniteError
from ..loop.generate import generate
from ..loop.loop import StepEvent, Told, Watcher
from ..loop.session import Session
from ..report import Report, silent
from ..samplers.program import with_x0_slot
from .job import Job, job_of
from .preview import Previews
from .request import RunRequest
from .results import write_images, write_program_file, write_tensor_files

FILES_SHOWN = 20  # by name, of a run's files


def run_bundle(request: RunRequest, report: Report = silent, warn: Callable[[str], object] = silent) -> dict[str, Any]:
    """Samples, writes every file asked for, and returns the summary.

    When pictures overflowed it raises NotFiniteError, with the summary, after the good ones were written: a grid has
    the others black, a folder has no file of them. warn: told where a prompt is cut.
    """
    return run_job(job_of(request, warn), report)


def run_job(job: Job, report: Report = silent) -> dict[str, Any]:
    """As `run_bundle`, of a request that was read against its bundle."""
    trajectory: list[np.ndarray] = []

    def on_step(event: StepEvent) -> None:
        if job.files.trajectory:
            trajectory.append(event.latents.copy())
        if previews is not None:
            previews.on_step(event)
        report("sampling", event.done, event.total)

    def looks(step: int) -> bool:
        return job.files.trajectory is not None or (previews is not None and previews.shows(step))

    with Session(job.bundle, job.engines) as session:
        for graph in ("step", "conditioner"):
            session.load(graph)  # loading is not sampling: keep it out of the timing
        previews = _previews(job, session)
        start = time.perf_counter()
        latents, broken = _latents(job, session, Watcher(on_step, looks))
        bad = [image.index for image in broken.images] if broken is not None else []
        images = _images(job, session, latents, bad) if job.files.pictures is not None else None
        seconds = time.perf_counter() - start
    written = [*previews.written] if previews is not None else []
    written += write_tensor_files(job, latents, trajectory)
    if images is not None and len(bad) < len(images):
        written += write_images(job, images, skip=bad)
    written += write_program_file(job)
    summary = _summary(job, seconds, written, broken)
    if broken is not None:
        broken.summary = summary
        raise broken
    return summary


def _latents(job: Job, session: Session, on_step: Told) -> tuple[np.ndarray, NotFiniteError | None]:
    """[n, C, H, W] float32, and what `generate` says of pictures that overflowed."""
    recipe = job.recipe
    try:
        latents = generate(
            job.bundle,
            recipe.labels,
            recipe.seeds,
            program=recipe.program if job.how.preview_every is None else with_x0_slot(recipe.program),
            guidance=recipe.guidance,
            away_from=recipe.away_from,
            prompts=recipe.prompts or None,
            negative=recipe.negative or None,
            also=recipe.also,
            size=recipe.size,
            image=recipe.begin.image if recipe.begin is not None else None,
            mask=recipe.begin.mask if recipe.begin is not None else None,
            batch=job.how.batch,
            output="latents",
            noise=job.noise,
            on_step=on_step,
            session=session,
            force_program=True,  # looked at when the job was made
            check_finite=job.how.check_finite,
        )
    except NotFiniteError as error:
        return error.results, error
    return latents, None


def _images(job: Job, session: Session, latents: np.ndarray, bad: list[int]) -> np.ndarray:
    """uint8 [n, h, w, 1 or 3]; those of `bad` are black: no decoder is asked what NaN looks like."""
    shown = latents.copy()
    shown[bad] = 0
    pictures = session.preview if job.rough else session.images
    parts = [shown[i : i + job.how.batch] for i in range(0, len(latents), job.how.batch)]
    images = np.concatenate([pictures(part) for part in parts])
    images[bad] = 0
    return images


def _previews(job: Job, session: Session) -> Previews | None:
    if job.how.preview_every is None:
        return None

    def write(step: int, images: np.ndarray, first: int) -> list[Path]:
        return write_images(job, images, step, first)

    return Previews(session, job.how.preview_every, write)


def _summary(job: Job, seconds: float, written: list[Path], broken: NotFiniteError | None) -> dict[str, Any]:
    """JSON-ready: what was sampled, how long it took, and every file that was written."""
    recipe = job.recipe
    return {
        "bundle": str(job.bundle.folder),
        "bundle_sha256": job.bundle.sha256,
        "images": recipe.images,
        **({"prompts": [prompt.text for prompt in recipe.prompts]} if recipe.prompts else {"labels": recipe.labels}),
        "seeds": recipe.seeds if job.noise is None else None,
        "program": recipe.program.name,
        "steps": recipe.program.steps,
        "made": recipe.program.made,
        "guidance": recipe.guidance,
        "provider": job.engines.provider if job.engines.plans is None else "plan",
        "seconds": seconds,
        "seconds_per_image": seconds / recipe.images,
        "written": [str(path) for path in written],
        "rough": job.rough and job.files.pictures is not None,
        "not_finite": [asdict(image) for image in broken.images] if broken is not None else [],
    }


def summary_lines(summary: dict[str, Any], engine: Path) -> Iterator[str]:
    """The summary for people; engine: what was run."""
    yield (
        f"{summary['images']} image(s), {summary['program']}, guidance {summary['guidance']:g}: "
        f"{summary['seconds']:.2f} s, {summary['seconds_per_image']:.2f} s per image"
    )
    yield from (f"wrote {path}" for path in summary["written"][:FILES_SHOWN])
    if len(summary["written"]) > FILES_SHOWN:
        yield f"... and {len(summary['written']) - FILES_SHOWN} more files"
    if summary["rough"]:
        yield "the pictures are rough: this bundle has no decoder, and its linear preview stands in for it"
        yield f"next: ditedge add-decoder --engine {engine} --vae VAE --out BUNDLE"
