"""The files of a run: pictures, previews of them, latents."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..files import write_tensors
from ..samplers.program import write_program
from .images import grid, picture_bytes, write_picture
from .job import Job, metadata
from .preview import preview_path


def write_images(
    job: Job, images: np.ndarray, step: int | None = None, first: int = 0, skip: Sequence[int] = ()
) -> list[Path]:
    """The pictures, or the previews of a step: then of the first images only, those before `first` written already.

    images: uint8 [n, h, w, 1 or 3]. skip: pictures that get no file of their own.
    """
    pictures, count, of = job.files.pictures, job.recipe.images, job.recipe.prompts or job.recipe.labels
    kind = pictures.kind if pictures is not None else "picture"
    place = pictures.path if pictures is not None else job.files.latents or job.files.trajectory
    assert place is not None
    if kind == "folder":
        return _write_each(job, place, images, step, sorted({*range(first, len(images))} - {*skip}))
    made = metadata(job, slice(0, len(images)), step)
    if kind == "npz" and step is None:
        arrays = {"images": images, **_labels(job), "ditedge": np.array(json.dumps(made))}
        write_tensors(place, arrays)
        return [place]
    columns = _columns(of) or int(np.ceil(count**0.5))
    picture = images[0] if count == 1 else grid(images, columns)
    if kind == "stdout":
        sys.stdout.buffer.write(picture_bytes("PNG", picture, made))
        sys.stdout.buffer.flush()
        return [place]
    path = place if step is None else preview_path(place, step)
    write_picture(path, picture, made)
    return [path]


def _write_each(job: Job, folder: Path, images: np.ndarray, step: int | None, chosen: Sequence[int]) -> list[Path]:
    """One PNG per image, named by its place, class and seed."""
    recipe = job.recipe
    digits, written = len(str(recipe.images - 1)), []
    for i in chosen:
        kind = "" if recipe.prompts else f"-class{recipe.labels[i]}"
        path = folder / f"{i:0{max(4, digits)}d}{kind}-seed{recipe.seeds[i]}.png"
        path = path if step is None else preview_path(path, step)
        write_picture(path, images[i], metadata(job, slice(i, i + 1), step))
        written.append(path)
    return written


def _columns(of: Sequence[object]) -> int | None:
    """One column per class or prompt when they go round more than once, else the squarest grid."""
    period = next((i for i in range(1, len(of)) if of[i] == of[0]), len(of))
    return period if 1 < period < len(of) else None


def _labels(job: Job) -> dict[str, np.ndarray]:
    """y [n] int64, of a model of classes."""
    return {} if job.recipe.prompts else {"y": np.array(job.recipe.labels, dtype=np.int64)}


def write_tensor_files(job: Job, latents: np.ndarray, trajectory: list[np.ndarray]) -> list[Path]:
    """latents [n, C, H, W] float32; trajectory: the latents after each step, batch by batch."""
    files, written = job.files, []
    y = _labels(job)
    if files.latents:
        write_tensors(files.latents, {"latents": latents, **y})
        written.append(files.latents)
    if files.trajectory:
        program = job.recipe.program
        batches = [np.stack(trajectory[i : i + program.steps]) for i in range(0, len(trajectory), program.steps)]
        x = np.concatenate(batches, axis=1)
        write_tensors(files.trajectory, {"x": x, **y, "timesteps": program.timestep})
        written.append(files.trajectory)
    return written


def write_program_file(job: Job) -> list[Path]:
    """The program for `--program` and C++, where it was asked for."""
    if job.files.program is None:
        return []
    write_program(job.recipe.program, job.files.program)
    return [job.files.program]
