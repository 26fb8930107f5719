"""What each image of a run is of, and is guided away from: classes, or prompts; and the size of its latent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..bundle.open import Bundle
from ..bundle.sizes import latent_of, text_of
from ..errors import RequestError
from ..fields import MAX_NUMBER
from .prompts import Prompt, check_prompt, empty_prompt, prompt_of_rows
from .request import check_images, check_seeds, whole_numbers
from .tables import Besides, Mixed, Subject, parts_of
from .tokenizing import Tokenizer

Words = str | Prompt
ONCE = "reads its guidance as a number and evaluates each step once"
MOST_ALSO = 7  # of one image, beside what it is of: an evaluation each


@dataclass(frozen=True)
class Subjects:
    """One entry an image, of one kind."""

    of: Sequence[Subject]
    away_from: Sequence[int | Prompt | None] | None

    @property
    def labels(self) -> list[int]:
        """Empty where they are prompts; of several classes together the first."""
        first = [subject.first if isinstance(subject, Mixed) else subject for subject in self.of]
        return [label for label in first if not isinstance(label, Prompt)]


def class_subjects(
    bundle: Bundle,
    labels: Sequence[int],
    away_from: Sequence[int | None] | None,
    *of_text: object,
) -> Subjects:
    """of_text: prompts, what to guide away from in words, a size. Raises RequestError for any of them."""
    if any(given is not None for given in of_text):
        text_of(bundle)  # raises
    others = None if away_from is None else whole_numbers("class to guide away from", away_from)
    if bundle.manifest.tells_guidance and any(other is not None for other in others or ()):
        raise RequestError(f"{bundle.folder} {ONCE}: leave the class to guide away from out")
    return Subjects(whole_numbers("label", labels), others)


def prompt_subjects(
    bundle: Bundle,
    labels: Sequence[int],
    away_from: Sequence[int | None] | None,
    prompts: Sequence[Words] | None,
    negative: Sequence[Words] | Words | None,
    guidance: float,
    also: bool = False,
) -> Subjects:
    """Texts become tokens, whose ends may be cut. also: the images are of other prompts, too.

    Raises RequestError for classes, and what the bundle cannot read.
    """
    if len(labels) or away_from is not None:
        raise RequestError(f"{bundle.folder} takes prompts, and no classes: give prompts")
    if prompts is None or isinstance(prompts, (str, Prompt)):
        raise RequestError(f"{bundle.folder} takes prompts: give a list with one for each image")
    guided = is_guided(bundle, guidance, negative is not None)
    found = read_prompts(bundle, prompts)
    if not guided and not also:
        return Subjects(found, None)
    others = list(negative) if isinstance(negative, Iterable) and not isinstance(negative, str) else [negative]
    if len(others) not in (1, len(found)):
        raise RequestError(f"{len(found)} prompts and {len(others)} to guide away from: give one, or as many of each")
    away = read_prompts(bundle, [no_words(bundle) if other is None else other for other in others], negative=True)
    return Subjects(found, away if len(away) == len(found) else away * len(found))


def with_also(bundle: Bundle, found: Subjects, also: Sequence[tuple[int | Words, float]]) -> Subjects:
    """Every image is also of these, each with its weight beside the 1 of its own. Raises RequestError."""
    if not also:
        return found
    if len(also) > MOST_ALSO:
        raise RequestError(f"{len(also)} things that the images are also of, at most {MOST_ALSO} are possible")
    weights = [float(weight) for _, weight in also]
    for weight in weights:
        if weight == 0 or not abs(weight) <= MAX_NUMBER:
            raise RequestError(f"weight {weight:g} of what the images are also of is not a number other than 0")
    if bundle.manifest.text is None:
        if bundle.manifest.tells_guidance:
            raise RequestError(f"{bundle.folder} {ONCE}: several classes have no weights there")
        others: Sequence[int | Prompt] = whole_numbers("label", [label for label, _ in also])  # type: ignore[misc]
        check_images(bundle.manifest.model, others, [0] * len(others), None)  # type: ignore[arg-type]
    else:
        if text_of(bundle).guidance != "true":
            raise RequestError(f"{bundle.folder} evaluates each step once: several prompts have no weights there")
        others = read_prompts(bundle, [prompt for prompt, _ in also])  # type: ignore[misc]
    further = tuple(zip(others, weights, strict=True))
    mixed = [Mixed((*parts_of(subject), *further)) for subject in found.of]
    return Subjects(mixed, found.away_from)


def one_subject(
    bundle: Bundle, subject: int | Words, away_from: int | Words | None, seed: int, guidance: float, *of_text: object
) -> tuple[int | Prompt, int | Prompt | None]:
    """What one image is of, and is guided away from. of_text: what only models of prompts have. Raises RequestError."""
    if bundle.manifest.text is None:
        told = [given for given in (subject, away_from) if isinstance(given, Prompt)]
        found = class_subjects(bundle, [subject], [away_from], *told, *of_text)  # type: ignore[list-item]
        check_images(bundle.manifest.model, found.labels, [seed], found.away_from)  # type: ignore[arg-type]
    else:
        labels, prompts = ([], [subject]) if isinstance(subject, (str, Prompt)) else ([subject], None)
        found = prompt_subjects(bundle, labels, None, prompts, away_from, guidance)  # type: ignore[arg-type]
        check_seeds("prompts", 1, [seed])
    [of] = found.of
    assert not isinstance(of, Mixed)
    return of, None if found.away_from is None else found.away_from[0]


def is_guided(bundle: Bundle, guidance: float, negative: bool) -> bool:
    """Whether steps have a second evaluation, which leads away from another prompt. negative: one was given.

    Raises RequestError for guidance or a negative prompt where the model has no use for it.
    """
    kind = text_of(bundle).guidance
    if negative and kind != "true":
        told = ONCE if kind == "embedded" else "has no guidance and evaluates each step once"
        raise RequestError(f"{bundle.folder} {told}: leave negative prompts out")
    if kind == "none" and guidance != 1.0:
        raise RequestError(f"guidance {guidance:g}: {bundle.folder} has none: leave it out, or give 1")
    return kind == "true" and guidance != 1.0


def read_prompts(bundle: Bundle, prompts: Sequence[Words], negative: bool = False) -> list[Prompt]:
    """Each text once to the tokenizer. negative: they are guided away from. Raises RequestError."""
    texts = dict.fromkeys(prompt for prompt in prompts if isinstance(prompt, str))
    tokenizer = Tokenizer(bundle) if texts else None
    of_text = {text: tokenizer.prompt(text, negative)[0] for text in texts} if tokenizer is not None else {}
    found = [of_text[prompt] if isinstance(prompt, str) else prompt for prompt in prompts]
    for prompt in found:
        if not isinstance(prompt, Prompt):
            raise RequestError(f"prompt {prompt!r} is neither a text nor a Prompt")
        check_prompt(bundle, prompt)
    return found


def no_words(bundle: Bundle) -> Words:
    """The prompt of no words: recorded in the bundle, or for its text encoder. Raises RequestError without either."""
    recorded = empty_prompt(bundle)
    if recorded is not None:
        return recorded
    if "text" not in bundle.manifest.graphs:
        raise RequestError(
            f"{bundle.folder} has no recorded prompt of no words to guide away from: give a negative prompt, "
            "or guidance 1"
        )
    return ""


def any_subject(bundle: Bundle) -> tuple[int | Prompt, Prompt | None, tuple[int, int]]:
    """What a step can be of where only its work counts, what it is guided away from, and the size of its picture.

    Class 0, away from the null class; or a prompt of one token, all zeros, of the size of training.
    """
    text = bundle.manifest.text
    if text is None:
        return 0, None, (0, 0)
    shapes = {name: shape for suffix, info in text.encoders.items() for name, shape in info.rows(suffix, 1).items()}
    prompt = prompt_of_rows({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    side = text.factor * bundle.manifest.model.input_size
    return prompt, prompt, (side, side)


def told_besides(bundle: Bundle, guidance: float, size: tuple[int, int]) -> tuple[float, Besides]:
    """What is left of guidance for a second evaluation, and what the conditioner is told beside class or prompts.

    size: height and width of the picture in pixels. Raises RequestError for guidance beyond MAX_NUMBER.
    """
    text = bundle.manifest.text
    told = {} if text is None else {"height": float(size[0]), "width": float(size[1])}
    vectors = text is not None and bundle.manifest.output_shape("context", "vector") is not None
    if not (bundle.manifest.tells_guidance if text is None else text.guidance == "embedded"):
        return guidance, Besides(told, vectors)
    if not abs(guidance) <= MAX_NUMBER:
        raise RequestError(f"guidance {guidance:g} is not a number up to 3e38")
    return 1.0, Besides(told | {"guidance": guidance}, vectors)


def picture_of(bundle: Bundle, latent: tuple[int, int, int]) -> tuple[int, int]:
    """Height and width in pixels of the picture of a latent C, H, W, for a model that may be told; else zeros."""
    text = bundle.manifest.text
    return (0, 0) if text is None else (text.factor * latent[1], text.factor * latent[2])


def image_tokens(bundle: Bundle, size: tuple[int, int] | None) -> int | None:
    """Of pictures of that size (`latent_of`), None where the model takes classes. Raises RequestError."""
    text = bundle.manifest.text
    return None if text is None else text.patches(latent_of(bundle, size)[1:])
