"""The images that a wish means, of the model that it names."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from ..bundle.open import Bundle
from ..bundle.sizes import latent_of, read_size
from ..errors import RequestError
from ..loop.prompts import Prompt
from ..loop.subjects import image_tokens, is_guided, no_words
from .service import Service
from .ticket import Asked
from .wishes import Wish


@dataclass(frozen=True)
class _Subject:
    """What the images are of, and are guided away from; size: (width, height) where the model has several."""

    of: int | Prompt
    away_from: int | Prompt | None
    size: tuple[int, int] | None = None


def images_of(service: Service, wish: Wish, preview_every: int | None = None) -> tuple[str, list[Asked]]:
    """The model's name, and its images. Raises DitedgeError for what does not fit it."""
    bundle = service.bundle(wish.model)
    if wish.n > service.max_images:
        raise RequestError(f"n {wish.n} is more than the {service.max_images} images that a request may ask for")
    subject = _classes(bundle, wish) if bundle.manifest.text is None else _prompts(service, bundle, wish)
    steps = wish.num_inference_steps
    if steps is not None and steps > service.max_steps:  # before a table of so many rows is made
        raise RequestError(f"steps {steps} is more than the {service.max_steps} that a request may ask for")
    program = bundle.program(tokens=image_tokens(bundle, subject.size), sampler=wish.sampler, steps=steps)
    if program.steps > service.max_steps:
        raise RequestError(f"program '{program.name}' has {program.steps} steps, more than {service.max_steps}")
    first = Asked(
        subject=subject.of,
        seed=secrets.randbelow(2**32) if wish.seed is None else wish.seed,
        program=program,
        guidance=wish.guidance_scale,
        away_from=subject.away_from,
        size=subject.size,
        priority=wish.priority,
        deadline=wish.deadline,
        preview_every=preview_every,
    )
    return bundle.manifest.name, [replace(first, seed=first.seed + i) for i in range(wish.n)]


def picture_size(bundle: Bundle, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Width and height of what is shown."""
    graph = "decoder" if "decoder" in bundle.manifest.graphs else "preview"
    height, width, _ = bundle.manifest.picture_size(graph, latent_of(bundle, size)[1:])
    return width, height


def _classes(bundle: Bundle, wish: Wish) -> _Subject:
    size = _size(wish.size)
    if size not in (None, picture_size(bundle)):
        width, height = picture_size(bundle)
        raise RequestError(f"size {wish.size}: pictures of {bundle.manifest.name} are {width}x{height}: leave size out")
    negative = bundle.label(wish.negative_prompt) if wish.negative_prompt else None
    return _Subject(bundle.label(wish.prompt), negative)


def _prompts(service: Service, bundle: Bundle, wish: Wish) -> _Subject:
    size = _size(wish.size)
    latent_of(bundle, size)  # raises
    guidance = bundle.manifest.defaults.guidance if wish.guidance_scale is None else wish.guidance_scale
    guided = is_guided(bundle, guidance, bool(wish.negative_prompt))
    negative = (wish.negative_prompt or no_words(bundle)) if guided else None
    prompt = service.tokens(bundle, wish.prompt)
    away = service.tokens(bundle, negative, negative=True) if isinstance(negative, str) else negative
    return _Subject(prompt, away, size)


def _size(size: str | None) -> tuple[int, int] | None:
    """ "768x512" -> (768, 512)."""
    return None if size is None or size == "auto" else read_size(size, "size")
