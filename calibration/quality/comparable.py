"""Which two bundles can be compared, and what can be asked of it: checked before the first image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...runtime.bundle.open import Bundle
from ...runtime.errors import RequestError
from ..pool import check_prompts
from .pictures import has_pictures
from .request import CompareRequest

COMPARABLE: Sequence[tuple[str, str]] = (
    ("in_channels", "latent channels"),
    ("input_size", "latent size"),
    ("out_channels", "network output channels"),
    ("num_classes", "classes"),
    ("null_class", "null class"),
    ("prediction", "prediction"),
    ("guided_channels", "guided channels"),
)


def differences(a: Bundle, b: Bundle) -> Iterator[tuple[str, object, object]]:
    """(what, of a, of b) of everything without which one program, and one prompt, cannot drive both."""
    for name, text in COMPARABLE:
        x, y = getattr(a.manifest.model, name), getattr(b.manifest.model, name)
        if x != y:
            yield text, x, y
    mine, theirs = (bundle.manifest.text for bundle in (a, b))
    if mine is None or theirs is None:
        return
    encoders = [
        [(info.tokens, info.width, info.pooled, info.masked) for info in text.encoders.values()]
        for text in (mine, theirs)
    ]
    if encoders[0] != encoders[1]:
        yield "tokens and rows of the text encoders", *encoders  # type: ignore[misc]
    for name, what in (("encoder_sha256", "hash of the text encoders"), ("guidance", "guidance"), ("factor", "factor")):
        x, y = getattr(mine, name), getattr(theirs, name)
        if x != y:
            yield what, x, y


def check_comparable(a: Bundle, b: Bundle, request: CompareRequest) -> None:
    """Raises RequestError, in one sentence, for bundles that one program cannot drive, and for impossible requests."""
    if (a.manifest.text is None) != (b.manifest.text is None):
        raise RequestError(f"{a.folder} and {b.folder} cannot be compared: one takes classes, the other prompts")
    check_prompts(a, request.prompts)
    for text, x, y in differences(a, b):
        raise RequestError(f"{a.folder} and {b.folder} cannot be compared: {text} {x} against {y}")
    _check_numbers(request)
    if request.reference is not None and request.features is None:
        raise RequestError(f"reference {request.reference} needs a feature extractor: give features, too")
    if not has_pictures(a, b):
        if request.features is not None:
            folder = b.folder if has_pictures(a) else a.folder
            raise RequestError(f"{folder} has no decoder, so there are no pictures for {request.features}")
        return
    mine, theirs = (bundle.manifest.picture_size("decoder") for bundle in (a, b))
    if mine != theirs:
        raise RequestError(
            f"{a.folder} and {b.folder} cannot be compared: pictures {list(mine)} against {list(theirs)}"
        )


def _check_numbers(request: CompareRequest) -> None:
    least = 2 if request.features else 1  # a covariance needs two
    if request.count < least or request.batch < 1 or request.speed_rounds < 0 or request.speed_batch < 1:
        raise RequestError(
            f"count {request.count}, batch {request.batch}, speed batch {request.speed_batch}: "
            f"at least {least}, 1 and 1 are needed"
        )
    if not 0 <= request.seed <= 2**64 - 2 * request.count:
        raise RequestError(
            f"seed {request.seed}: the seeds of {request.count} images, and of as many others, end at 2**64"
        )
