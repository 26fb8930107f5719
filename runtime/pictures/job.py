"""A run with everything decided: what `run` needs after its request was read against the bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ditedge import __version__

from ..bundle.open import Bundle, open_bundle
from ..errors import RequestError
from ..files import check_writable, sha256_of_file
from ..loop.engine import EngineOptions, options_for
from ..loop.generate import read_noise
from ..loop.noise import GivenNoise
from ..loop.subjects import image_tokens, is_guided
from ..options import DEFAULT_STRENGTH
from ..report import silent
from ..samplers.guidance import guidance_interval_from_text
from ..samplers.process import check_process
from ..samplers.program import Program, read_program
from ..samplers.settings import SamplerSettings
from .also import also_of, also_recorded
from .begin import beginning_of, own_size
from .images import check_metadata_fits, picture_format
from .outputs import Output, check_memory, check_tensor_file, picture_output
from .preview import check_previews
from .recipe import Recipe, program_file_metadata, recipe_of_picture
from .request import PromptOptions, RunOptions, RunRequest
from .words import check_no_classes, check_no_prompts, prompts_of, recorded

DEFAULT_IMAGES = 8  # without --class and --count: one image of each of the first classes


@dataclass(frozen=True)
class Files:
    """Where the results go; None is not written."""

    pictures: Output | None  # None: only latents are wanted
    latents: Path | None
    trajectory: Path | None
    program: Path | None


@dataclass(frozen=True)
class Job:
    """What will be sampled, how, and where it goes; nothing is left to decide, and all of it was checked."""

    bundle: Bundle
    engines: EngineOptions
    recipe: Recipe
    noise: GivenNoise | None  # instead of the recipe's seeds
    noise_sha256: str | None  # of the file that it came from
    how: RunOptions
    files: Files

    @property
    def rough(self) -> bool:
        """Without a decoder, pictures are made by the graph `preview`."""
        return "decoder" not in self.bundle.manifest.graphs


def job_of(request: RunRequest, warn: Callable[[str], object] = silent) -> Job:
    """Reads the bundle and the files that the request names. Raises DitedgeError for all that cannot be done.

    warn: told where a prompt is cut.
    """
    bundle = open_bundle(request.engine, trusted_keys=request.trusted_keys or None)
    engines = options_for(request.engine, request.options)  # raises when they do not go together
    if request.like is not None:
        _check_like(request)
    noise = read_noise(request.noise) if request.noise else None
    job = Job(
        bundle=bundle,
        engines=engines,
        recipe=_recipe(request, bundle, noise, warn),
        noise=noise,
        noise_sha256=sha256_of_file(request.noise) if request.noise else None,
        how=request.how,
        files=_files(request, bundle),
    )
    _check(job)
    return job


def metadata(job: Job, images: slice, step: int | None = None) -> dict[str, Any]:
    """What it takes to make these images again. step: of a preview."""
    recipe = job.recipe
    return {
        "software": f"ditedge {__version__}",
        "bundle": job.bundle.manifest.name,
        "bundle_sha256": job.bundle.sha256,
        **_subjects(job, images),
        "seeds": recipe.seeds[images] if job.noise is None else None,
        "noise_sha256": job.noise_sha256,
        "program": recipe.program.name,
        "made": recipe.program.made,
        "guidance": recipe.guidance,
        **recipe.program_file,
        **(recipe.begin.files if recipe.begin is not None else {}),
        **({"also": also_recorded(recipe.also)} if recipe.also else {}),
        **({"rough": True} if job.rough and job.files.pictures is not None else {}),
        **({} if step is None else {"preview_step": step}),
    }


def _subjects(job: Job, images: slice) -> dict[str, Any]:
    """What the pictures are of, in their metadata."""
    recipe = job.recipe
    if recipe.prompts:
        return {
            "prompts": [recorded(prompt) for prompt in recipe.prompts[images]],
            "negative": [recorded(prompt) for prompt in recipe.negative[images]],
            "size": list(recipe.size) if recipe.size is not None else None,
        }
    labels = recipe.labels[images]
    return {
        "labels": labels,
        "classes": [job.bundle.label_name(label) for label in labels],
        "away_from": recipe.away_from[images] if recipe.away_from else None,
    }


def _recipe(request: RunRequest, bundle: Bundle, noise: GivenNoise | None, warn: Callable[[str], object]) -> Recipe:
    if request.like is not None:
        program_file = Path(request.program) if request.program else None
        return recipe_of_picture(request.like, bundle, program_file, request.begin, warn)
    if bundle.manifest.text is not None:
        return _prompt_recipe(request, bundle, warn)
    check_no_prompts(request, bundle)
    as_recorded = noise is not None and not request.classes and request.count is None
    count = len(noise.z) if noise is not None and as_recorded else request.count
    labels, begin = _labels(request.classes, count, bundle), beginning_of(request.begin, bundle, None)
    others = [bundle.label(text) for text in request.away_from]
    program, file = _program(request, bundle)
    return Recipe(
        labels=labels,
        seeds=[0 if as_recorded else request.seed + i for i in range(len(labels))],
        away_from=[others[i % len(others)] for i in range(len(labels))] if others else None,
        guidance=bundle.manifest.defaults.guidance if request.guidance is None else request.guidance,
        program=program,
        program_file=program_file_metadata(file) if file is not None else {},
        begin=begin,
        also=also_of(request.also, bundle, warn),
    )


def _prompt_recipe(request: RunRequest, bundle: Bundle, warn: Callable[[str], object]) -> Recipe:
    check_no_classes(request, bundle)
    said = prompts_of(request, bundle, warn)
    count = request.count or len(said.prompts)
    guidance = bundle.manifest.defaults.guidance if request.guidance is None else request.guidance
    also = also_of(request.also, bundle, warn)
    away = said.negative if is_guided(bundle, guidance, False) or also else []
    size, image = said.size, request.begin.image
    if size is None and image is not None:
        size = own_size(image, bundle)
    program, file = _program(request, bundle, image_tokens(bundle, size))
    return Recipe(
        labels=[],
        seeds=[request.seed + i for i in range(count)],
        away_from=None,
        guidance=guidance,
        program=program,
        program_file=program_file_metadata(file) if file is not None else {},
        prompts=[said.prompts[i % len(said.prompts)] for i in range(count)],
        negative=[away[i % len(away)] for i in range(count)] if away else [],
        size=size,
        begin=beginning_of(request.begin, bundle, size),
        also=also,
    )


def _labels(classes: tuple[str, ...], count: int | None, bundle: Bundle) -> list[int]:
    chosen = [bundle.label(text) for text in classes]
    if not chosen:
        chosen = list(range(bundle.manifest.model.num_classes))
        count = count or min(DEFAULT_IMAGES, len(chosen))
    return [chosen[i % len(chosen)] for i in range(count or len(chosen))]


def _program(request: RunRequest, bundle: Bundle, tokens: int | None = None) -> tuple[Program, Path | None]:
    """From sampler settings, a ready program's name, or a program file, which is returned, too.

    tokens: of the picture, where it has prompts.
    """
    name, begins = request.program, request.begin.image is not None
    if request.settings.strength is not None and not begins:
        raise RequestError("--strength says how far the images leave a picture: give --image, too")
    if name is None or name in bundle.manifest.programs:
        settings = replace(request.settings, guidance_interval=_interval(request.guidance_interval, bundle))
        if begins and name is None and settings.strength is None:
            settings = replace(settings, strength=DEFAULT_STRENGTH)
        return bundle.program(name, tokens, **vars(settings)), None
    if request.settings != SamplerSettings() or request.guidance_interval:
        raise RequestError(f"program '{name}' is ready-made: leave sampler, steps and their like out")
    if not Path(name).is_file():
        raise RequestError(
            f"program '{name}' is neither a file nor in the bundle, which has {', '.join(bundle.manifest.programs)}"
        )
    program = read_program(Path(name))
    if not request.force_program:
        remedy = "make one for this model, or insist with --force-program"
        check_process(name, program.process, bundle.process, remedy)
    return program, Path(name)


def _interval(text: str | None, bundle: Bundle) -> tuple[float, float] | None:
    return None if text is None else guidance_interval_from_text(text, bundle.schedule)


def _check_like(request: RunRequest) -> None:
    """--like and everything that the picture says itself."""
    asked = [
        request.classes,
        request.away_from,
        request.also,
        request.count,
        request.seed,
        request.guidance,
        request.noise,
    ]
    if (
        any(asked)
        or request.prompts != PromptOptions()
        or request.settings != SamplerSettings()
        or request.guidance_interval
    ):
        raise RequestError("--like takes classes, seeds and settings from the picture: leave the other options out")


def _files(request: RunRequest, bundle: Bundle) -> Files:
    """Where everything goes; checked now rather than after the sampling.

    Latents that nothing decodes are kept: a run that names no file leaves them beside a rough picture.
    """
    out, latents, name = request.out, request.save_latents, bundle.folder.absolute().name
    unnamed = out is None and not (latents or request.save_trajectory)
    if "decoder" not in bundle.manifest.graphs:
        rough = "preview" in bundle.manifest.graphs
        if not rough and out is not None:
            bundle.require("decoder")  # raises, with the remedy
        if unnamed:
            latents = Path(f"{name}.safetensors")
            out = Path(f"{name}.png") if rough else None
    elif unnamed:
        out = Path(f"{name}.png")
    pictures = None if out is None else picture_output(out)
    for path in (latents, request.save_trajectory):
        if path is not None:
            check_tensor_file(path)
    if request.save_program is not None:
        check_writable(request.save_program)
    return Files(pictures, latents, request.save_trajectory, request.save_program)


def _check(job: Job) -> None:
    """Raises RequestError for what would fail, or be of no use, after minutes of sampling."""
    program, pictures = job.recipe.program, job.files.pictures
    if (program.init[0] != 0) != (job.recipe.begin is not None):
        what = "starts from a picture: give --image" if program.init[0] else "starts from noise: leave --image out"
        raise RequestError(f"program '{program.name}' {what}")
    if job.how.preview_every is not None:
        check_previews(job.bundle, program, job.how.preview_every)
        if pictures is not None and pictures.kind == "stdout":
            raise RequestError("--preview-every writes files beside the picture: give -o a name")
    check_memory(job.bundle, job.recipe, program.steps if job.files.trajectory else 1)
    if pictures is not None and pictures.kind == "picture":
        check_metadata_fits(picture_format(pictures.path), metadata(job, slice(None)))
