"""What a request may ask for, checked, and the images that it means. Interfaces differ in names alone."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..errors import RequestError
from ..json_files import parse_json, validated

MAX_VALUES = 1000
PLACE = "the request"
Name = Annotated[str, Field(max_length=1000)]
Words = Annotated[str, Field(max_length=8000)]
A1111_SAMPLERS = {  # theirs, in small letters -> ours
    "euler a": "euler-ancestral",
    "dpm++ 2m": "dpm++",
    "dpm++ 2m sde": "sde-dpm++",
    **{name: name for name in ("ddpm", "ddim", "euler", "heun", "unipc", "deis", "lms", "lcm", "tcd")},
}
Subject = Annotated[Words, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
Guidance = Annotated[float, Field(allow_inf_nan=False)]


class Wish(BaseModel):
    """Images of one kind. The names are those of OpenAI's images API and of diffusers' pipelines."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: Name | None = None
    prompt: Subject = Field(description="The class, by its name or its number; or words, where the model takes those.")
    negative_prompt: Subject | None = Field(None, description="What to guide away from, of the same kind.")
    n: Annotated[int, Field(ge=1)] = 1
    size: Name | None = Field(None, description="WIDTHxHEIGHT, or auto. Models of classes have one size.")
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

    prompt: Words
    negative_prompt: Words = ""
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

    @property
    def model(self) -> str | None:
        checkpoint = self.override_settings.get("sd_model_checkpoint")
        return str(checkpoint) if checkpoint else None

    def wish(self, sized: bool) -> Wish:
        """The same in the names of the others. sized: the model has several sizes; clients always send one."""
        sampler = self.sampler_name or self.sampler_index
        said = {
            "model": self.model,
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt or None,
            "size": f"{self.width}x{self.height}" if sized and self.width and self.height else None,
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
