"""What a request may ask for, checked, and the images that it means. Interfaces differ in names alone."""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..bundle.open import Bundle
from ..errors import RequestError
from ..json_files import parse_json, validated
from .service import Service
from .ticket import Asked

MAX_VALUES = 1000
PLACE = "the request"
Name = Annotated[str, Field(max_length=1000)]
A1111_SAMPLERS = {  # theirs, in small letters -> ours
    "euler a": "euler-ancestral",
    "dpm++ 2m": "dpm++",
    "dpm++ 2m sde": "sde-dpm++",
    **{name: name for name in ("ddpm", "ddim", "euler", "heun", "unipc", "deis", "lms")},
}
Class = Annotated[Name, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
Guidance = Annotated[float, Field(allow_inf_nan=False)]


class Wish(BaseModel):
    """Images of one kind. The names are those of OpenAI's images API and of diffusers' pipelines."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: Name | None = None
    prompt: Class = Field(description="The class: its name, or its number.")
    negative_prompt: Class | None = Field(None, description="A class to guide away from, instead of from none.")
    n: Annotated[int, Field(ge=1)] = 1
    size: Name | None = Field(None, description="WIDTHxHEIGHT, which is the model's own, or auto.")
    seed: int | None = Field(None, description="Of the first image; the next has one more. Default: any.")
    num_inference_steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: Guidance | None = None
    sampler: Name | None = None
    priority: Annotated[int, Field(ge=-10, le=10)] = 0
    deadline: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(None, description="Seconds from now.")


class OpenAIWish(Wish):
    """`POST /v1/images/generations`. What follows `response_format` is taken and means nothing here."""

    stream: bool = False
    partial_images: Annotated[int, Field(ge=0, le=50)] = 0
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png"] = "png"
    user: Name | None = None
    quality: Name | None = None
    style: Name | None = None
    background: Name | None = None
    moderation: Name | None = None
    output_compression: int | None = None


class JobWish(Wish):
    """`POST /v1/jobs`."""

    preview_every: Annotated[int, Field(ge=1)] | None = Field(None, description="Steps between two estimates.")


class A1111Wish(BaseModel):
    """`POST /sdapi/v1/txt2img`: what means something here; its clients send more, which is ignored."""

    model_config = ConfigDict(strict=True)

    prompt: Name
    negative_prompt: Name = ""
    seed: int = -1
    steps: Annotated[int, Field(ge=1)] | None = None
    cfg_scale: Guidance | None = None
    sampler_name: Name | None = None
    sampler_index: Name | None = None
    n_iter: Annotated[int, Field(ge=1, le=1000)] = 1
    batch_size: Annotated[int, Field(ge=1, le=1000)] = 1
    width: int | None = None
    height: int | None = None
    override_settings: dict[str, Any] = {}

    def wish(self) -> Wish:
        """The same in the names of the others. Sizes are left to the model, for clients always send one."""
        checkpoint, sampler = self.override_settings.get("sd_model_checkpoint"), self.sampler_name or self.sampler_index
        said = {
            "model": str(checkpoint) if checkpoint else None,
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt or None,
            "n": self.n_iter * self.batch_size,
            "seed": None if self.seed == -1 else self.seed,
            "num_inference_steps": self.steps,
            "guidance_scale": self.cfg_scale,
            "sampler": A1111_SAMPLERS.get(sampler.lower(), sampler) if sampler else None,
        }
        return validated(Wish, said, PLACE, RequestError)


def read_wish(kind: type[BaseModel], raw: bytes) -> Any:
    """The body of a request as a `kind`. Raises RequestError: the first complaint, with its field."""
    return validated(kind, parse_json(raw, PLACE, RequestError, MAX_VALUES), PLACE, RequestError)


def images_of(service: Service, wish: Wish, preview_every: int | None = None) -> tuple[str, list[Asked]]:
    """The model's name, and its images. Raises DitedgeError for what does not fit it."""
    bundle = service.bundle(wish.model)
    if wish.n > service.max_images:
        raise RequestError(f"n {wish.n} is more than the {service.max_images} images that a request may ask for")
    _check_size(bundle, wish.size)
    program = bundle.program(sampler=wish.sampler, steps=_steps(service, wish.num_inference_steps))
    if program.steps > service.max_steps:
        raise RequestError(f"program '{program.name}' has {program.steps} steps, more than {service.max_steps}")
    seed = secrets.randbelow(2**32) if wish.seed is None else wish.seed
    negative = bundle.label(wish.negative_prompt) if wish.negative_prompt else None
    label = bundle.label(wish.prompt)
    images = [
        Asked(
            label=label,
            seed=seed + i,
            program=program,
            guidance=wish.guidance_scale,
            away_from=negative,
            priority=wish.priority,
            deadline=wish.deadline,
            preview_every=preview_every,
        )
        for i in range(wish.n)
    ]
    return bundle.manifest.name, images


def _steps(service: Service, steps: int | None) -> int | None:
    """Looked at before a table of so many rows is made."""
    if steps is not None and steps > service.max_steps:
        raise RequestError(f"steps {steps} is more than the {service.max_steps} that a request may ask for")
    return steps


def picture_size(bundle: Bundle) -> tuple[int, int]:
    """Width and height of what is shown."""
    graph = "decoder" if "decoder" in bundle.manifest.graphs else "preview"
    height, width, _ = bundle.manifest.picture_size(graph)
    return width, height


def _check_size(bundle: Bundle, size: str | None) -> None:
    if size in (None, "auto"):
        return
    width, height = picture_size(bundle)
    found = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", size or "")
    if found is None or (int(found[1]), int(found[2])) != (width, height):
        raise RequestError(f"size {size!r}: pictures of {bundle.manifest.name} are {width}x{height}: leave size out")
