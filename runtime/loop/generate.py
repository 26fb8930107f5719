"""`generate`: labels or prompts, and seeds, in; images out. What the command line and most programs call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from typing_extensions import TypedDict, Unpack

from ..bundle.open import Bundle
from ..bundle.sizes import latent_of
from ..errors import BrokenImage, RequestError
from ..options import DEFAULT_BATCH, DEFAULT_STRENGTH
from ..samplers.program import Program
from .engine import EngineOptions
from .finite import FirstBroken, broken_images, not_finite, not_finite_error
from .given import FromLatent, kept_of, pictures_of
from .loop import StepEvent, Told, Watcher, looks_of
from .noise import GivenNoise, NoiseSource, SeededNoise
from .prompts import Prompt
from .request import check_images, check_program, check_seeds, whole_numbers
from .session import Session
from .subjects import Subjects, class_subjects, image_tokens, picture_of, prompt_subjects, with_also


class Settings(TypedDict, total=False):
    """The settings of `generate`, each a keyword argument of it; `Sampling` has what they mean and their defaults."""

    program: Program | None
    guidance: float | None
    away_from: Sequence[int | None] | None
    prompts: Sequence[str | Prompt] | None
    negative: Sequence[str | Prompt] | str | Prompt | None
    also: Sequence[tuple[int | str | Prompt, float]]
    size: tuple[int, int] | None
    image: np.ndarray | None
    mask: np.ndarray | None
    batch: int
    output: str
    noise: GivenNoise | None
    on_step: Told | None
    cancel: threading.Event | None
    options: EngineOptions | None
    session: Session | None
    force_program: bool
    check_finite: bool


@dataclass(frozen=True)
class Sampling:
    """How images are sampled.

    program: from `bundle.program(...)`; None is the bundle's default.
    guidance: classifier-free guidance scale, 1 is none; None is the bundle's default.
    away_from: per image, a class to guide away from instead of from "no class"; None entries are no class.
    prompts: one per image, where the model takes prompts: texts, or `Prompt`s (of token ids, or recorded).
    negative: what to guide away from, one for all images or one per image; None is the prompt of no words.
    also: what all images are also of, classes or prompts with their weights: ("in the snow", 0.5); below 0 is away.
    size: (width, height) of the pictures in pixels; None is the model's own.
    image: a picture to begin from, uint8 [h, w, c] of the size of those that are made, or one for each, [n, h, w, c]:
        for a program that does, such as `bundle.program(strength=0.8)`.
    mask: where to paint that picture over, bool or uint8 [h, w] or [n, h, w], not 0 there; the rest is kept.
    batch: images that share one run of the network; bounds memory.
    output: "images" (uint8 [n, h, w, 1 or 3]) or "latents" (float32 [n, C, H, W]).
    noise: recorded noise for all n images instead of seeds.
    on_step: told of every step, with the latents of the batch that runs; a `Watcher` says when it looks at them.
    cancel: set it from another thread to stop within the step that runs (plans: within a few steps).
    options: of the engines, where no session is given.
    session: loaded engines to use again; None loads them for this call.
    force_program: run a program that was made for another prediction, other betas or other timesteps all the same.
    check_finite: look for numbers that are not finite after every step, not only after the last one.
    """

    program: Program | None = None
    guidance: float | None = None
    away_from: Sequence[int | None] | None = None
    prompts: Sequence[str | Prompt] | None = None
    negative: Sequence[str | Prompt] | str | Prompt | None = None
    also: Sequence[tuple[int | str | Prompt, float]] = ()
    size: tuple[int, int] | None = None
    image: np.ndarray | None = None
    mask: np.ndarray | None = None
    batch: int = DEFAULT_BATCH
    output: str = "images"
    noise: GivenNoise | None = None
    on_step: Told | None = None
    cancel: threading.Event | None = None
    options: EngineOptions | None = None
    session: Session | None = None
    force_program: bool = False
    check_finite: bool = False


def generate(
    bundle: Bundle, labels: Sequence[int] = (), seeds: Sequence[int] = (), **settings: Unpack[Settings]
) -> np.ndarray:
    """Samples one image per (label, seed), or per (prompt, seed) -> images or latents, as `output` says.

    Args:
        labels: class numbers, 0 .. num_classes - 1: a list, or an array or tensor of integers; seeds likewise. None of
            them where the model takes `prompts`.
        seeds: one per image, 0 .. 2**64 - 1; the same seed gives the same image alone and in any batch.
        settings: the fields of `Sampling`: program, guidance, away_from, prompts, batch, output, noise, session ...

    Raises: RequestError (arguments that do not fit the bundle), EngineError, Cancelled; NotFiniteError when pictures
        overflowed: it holds the others.
    """
    given = Sampling(**settings)
    seeds, guidance = whole_numbers("seed", seeds), given.guidance
    guidance = bundle.manifest.defaults.guidance if guidance is None else guidance
    if bundle.manifest.text is None:
        subjects = class_subjects(bundle, labels, given.away_from, given.prompts, given.negative, given.size)
        check_images(bundle.manifest.model, subjects.labels, seeds, subjects.away_from)  # type: ignore[arg-type]
    else:
        subjects = prompt_subjects(
            bundle, labels, given.away_from, given.prompts, given.negative, guidance, bool(given.also)
        )
        check_seeds("prompts", len(subjects.of), seeds)
    subjects = with_also(bundle, subjects, given.also)
    run = _Run(
        subjects, seeds, latent_of(bundle, given.size), given.program or _default(bundle, given), guidance, given
    )
    _check(bundle, run)
    with nullcontext(given.session) if given.session is not None else Session(bundle, given.options) as engines:
        return _sampled(engines, run)


@dataclass(frozen=True)
class _Run:
    """The arguments of `generate`; what was left out is the bundle's."""

    subjects: Subjects
    seeds: Sequence[int]
    latent: tuple[int, int, int]  # C, H, W
    program: Program
    guidance: float
    given: Sampling

    @property
    def images(self) -> int:
        return len(self.subjects.of)


def _default(bundle: Bundle, given: Sampling) -> Program:
    strength = DEFAULT_STRENGTH if given.image is not None else None
    return bundle.program(tokens=image_tokens(bundle, given.size), strength=strength)


def _sampled(engines: Session, run: _Run) -> np.ndarray:
    """All images, batch by batch. Raises NotFiniteError with those that are finite."""
    if run.given.output == "images":
        engines.load("decoder")  # fails now, not after minutes of sampling
    results: list[np.ndarray] = []
    broken: list[BrokenImage] = []
    subjects, start = run.subjects, _start_of(engines, run)
    for first in range(0, run.images, run.given.batch):
        part = slice(first, first + run.given.batch)
        seen = FirstBroken(len(subjects.of[part])) if run.given.check_finite else None
        latents = engines.latents(
            run.program,
            list(subjects.of[part]),
            run.guidance,
            start(_noise_of(run, part), part),
            on_step=_step_callback(run, first, seen),
            cancel=run.given.cancel,
            away_from=list(subjects.away_from[part]) if subjects.away_from is not None else None,
            size=picture_of(engines.bundle, run.latent),
        )
        bad = not_finite(latents)
        results.append(_images(engines, latents, bad) if run.given.output == "images" else latents)
        seeds = None if run.given.noise else run.seeds
        broken += broken_images(bad, first, subjects.labels, seeds, seen.step if seen else None)
    if broken:
        raise not_finite_error(engines.bundle, broken, np.concatenate(results))
    return np.concatenate(results)


def _images(engines: Session, latents: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Pictures of a batch; those that are `bad` [B] are black: no decoder is asked what NaN looks like."""
    images = engines.images(np.where(bad[:, None, None, None], np.float32(0), latents))
    images[bad] = 0
    return images


def _step_callback(run: _Run, first: int, seen: FirstBroken | None) -> Told | None:
    """None when nobody watches. States stay on a device where nobody looks at them."""
    tell, batches = run.given.on_step, -(-run.images // run.given.batch)
    if tell is None:
        return seen.on_step if seen is not None else None

    def on_step(event: StepEvent) -> None:
        if seen is not None:
            seen.on_step(event)
        tell(replace(event, first=first, batch=first // run.given.batch, batches=batches))

    return Watcher(on_step, looks_of(tell)) if seen is None else on_step


def _start_of(engines: Session, run: _Run) -> Callable[[NoiseSource, slice], NoiseSource]:
    """What makes a batch begin from its pictures, encoded once; as it is where there are none. Raises RequestError."""
    image, mask, bundle = run.given.image, run.given.mask, engines.bundle
    if image is None:
        if mask is not None:
            raise RequestError("a mask says which part of an image is painted over: give the image, too")
        return lambda noise, part: noise
    if run.program.init[0] == 0:
        raise RequestError(
            f"program '{run.program.name}' starts from noise alone: make one with a strength, such as "
            "bundle.program(strength=0.8)"
        )
    pictures = pictures_of(bundle, image, run.images, run.latent)
    latents = engines.encode_images(pictures, run.latent)
    keep = None if mask is None else kept_of(mask, run.images, pictures.shape[1:3], run.latent)
    every = (run.images, *run.latent)
    latents = np.broadcast_to(latents, every)
    kept = None if keep is None else np.broadcast_to(keep, (run.images, 1, *run.latent[1:]))
    return lambda noise, part: FromLatent(noise, latents[part], None if kept is None else kept[part])


def _noise_of(run: _Run, part: slice) -> NoiseSource:
    noise = run.given.noise
    if noise is not None:
        return GivenNoise(noise.z[part], np.ascontiguousarray(noise.noise[:, part]))
    return SeededNoise(list(run.seeds[part]), run.latent)


def _check(bundle: Bundle, run: _Run) -> None:
    """Raises RequestError for what does not fit the bundle."""
    program, noise = run.program, run.given.noise
    if run.given.batch < 1:
        raise RequestError(f"batch {run.given.batch} is not at least 1")
    if run.given.output not in ("images", "latents"):
        raise RequestError(f"output '{run.given.output}' is not 'images' or 'latents'")
    if noise is not None:
        latent = (run.images, *run.latent)
        if noise.z.shape != latent or noise.noise.shape != (program.steps, *latent):
            raise RequestError(
                f"noise has z {list(noise.z.shape)} and noise {list(noise.noise.shape)}, this run needs "
                f"z {list(latent)} and noise {[program.steps, *latent]}"
            )
    if not run.given.force_program:
        check_program(bundle, program)


def read_noise(path: Path) -> GivenNoise:
    """A .safetensors with `z` [B, C, H, W] and `noise` [N, B, C, H, W], both float32. Raises RequestError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise RequestError(f"{path}: not a readable .safetensors file ({error})") from None
    for name, dimensions in (("z", 4), ("noise", 5)):
        if name not in tensors or tensors[name].ndim != dimensions or tensors[name].dtype != np.float32:
            raise RequestError(f"{path}: needs a float32 tensor '{name}' of {dimensions} dimensions")
        if not np.isfinite(tensors[name]).all():
            raise RequestError(f"{path}: tensor '{name}' has numbers that are not finite")
    return GivenNoise(tensors["z"], tensors["noise"])
