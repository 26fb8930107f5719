"""The prompts of a run: from the command line, from files, and from the metadata of a picture that was made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from ..bundle.open import Bundle
from ..bundle.sizes import latent_of, read_size, text_of
from ..errors import RequestError
from ..json_files import read_bounded
from ..loop.prompts import Prompt, read_prompt
from ..loop.subjects import is_guided, no_words
from ..loop.tokenizing import Tokenizer
from .request import PromptOptions, RunRequest

MAX_LIST_BYTES = 64 << 20


class RecordedPrompt(BaseModel):
    """A prompt in a picture's metadata. sha256: of what the network was told; text: None where nobody knows it."""

    sha256: Annotated[str, Field(max_length=64)]
    text: Annotated[str, Field(max_length=1 << 20)] | None = None
    recorded: bool = False  # it came from a file of `encode`


@dataclass(frozen=True)
class Said:
    """What a request says; cycled over the images."""

    prompts: Sequence[Prompt]
    negative: Sequence[Prompt]  # no words, where nothing else was said; empty: steps have one evaluation
    size: tuple[int, int] | None


def recorded(prompt: Prompt) -> dict[str, str | bool | None]:
    """What a picture remembers of a prompt."""
    return {"sha256": prompt.key, "text": prompt.text, "recorded": prompt.recorded}


def prompts_of(request: RunRequest, bundle: Bundle, warn: Callable[[str], object]) -> Said:
    """Reads and tokenises. warn: told where a prompt is cut. Raises RequestError."""
    asked = request.prompts
    size = read_size(asked.size) if asked.size is not None else None
    latent_of(bundle, size)  # raises
    texts = [*asked.text, *(prompt_lines(asked.list) if asked.list is not None else ())]
    prompts = [*words(bundle, texts, warn), *(read_prompt(path, bundle) for path in asked.recorded)]
    if not prompts:
        raise RequestError(f"{bundle.folder} takes prompts: say what the picture is of with --prompt, or --prompt-file")
    guidance = bundle.manifest.defaults.guidance if request.guidance is None else request.guidance
    guided = is_guided(bundle, guidance, bool(asked.negative or asked.negative_recorded)) or bool(request.also)
    negative = [*words(bundle, asked.negative, warn, negative=True)]
    negative += [read_prompt(path, bundle) for path in asked.negative_recorded]
    return Said(prompts, negative or (_no_words(bundle) if guided else []), size)


def words(bundle: Bundle, texts: Sequence[str], warn: Callable[[str], object], negative: bool = False) -> list[Prompt]:
    """Each text as tokens. negative: they are guided away from. Raises RequestError without a text encoder."""
    tokenizer = Tokenizer(bundle) if texts else None
    found: dict[str, Prompt] = {}
    for text in texts:
        if text not in found and tokenizer is not None:
            found[text], cut = tokenizer.prompt(text, negative)
            if cut is not None:
                warn(cut)
    return [found[text] for text in texts]


def again(
    picture: Path,
    bundle: Bundle,
    prompts: Sequence[RecordedPrompt],
    warn: Callable[[str], object],
    negative: bool = False,
) -> list[Prompt]:
    """The prompts of a picture's metadata, or what it was guided away from.

    Raises RequestError for those whose words are not in it.
    """
    found = []
    for prompt in prompts:
        if prompt.recorded:
            made = _recorded_again(bundle, prompt)
            if made is None:
                raise RequestError(
                    f"{picture} was made from a recorded prompt, which is not in it: give --prompt-file, "
                    "--seed and its other options"
                )
        else:
            [made] = words(bundle, [prompt.text or ""], warn, negative)
            if made.key != prompt.sha256:
                raise RequestError(f"{picture}: the tokens of its prompt are others than those of its text")
        found.append(made)
    return found


def _recorded_again(bundle: Bundle, prompt: RecordedPrompt) -> Prompt | None:
    """The bundle's own recorded prompt of no words, where it is that one."""
    own = no_words(bundle) if text_of(bundle).empty is not None else None
    return own if isinstance(own, Prompt) and own.key == prompt.sha256 else None


def check_no_classes(request: RunRequest, bundle: Bundle) -> None:
    """Raises RequestError for options that are about classes."""
    if request.classes or request.away_from:
        option = "--class" if request.classes else "--not"
        raise RequestError(f"{bundle.folder} takes prompts, and no classes: give --prompt instead of {option}")


def check_no_prompts(request: RunRequest, bundle: Bundle) -> None:
    """Raises RequestError for options that are about prompts."""
    if request.prompts != PromptOptions():
        raise RequestError(f"{bundle.folder} takes classes, and no prompts or sizes: give --class instead")


def _no_words(bundle: Bundle) -> list[Prompt]:
    found = no_words(bundle)
    return [found] if isinstance(found, Prompt) else words(bundle, [found], lambda cut: None, negative=True)


def prompt_lines(path: Path) -> list[str]:
    """A prompt a line; lines of spaces alone are left out. Raises RequestError."""
    try:
        lines = read_bounded(path, MAX_LIST_BYTES, RequestError).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise RequestError(f"{path}: not valid UTF-8 text") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise RequestError(f"{path}: has no prompt")
    return found
