"""Words to token ids by the bundle's `text/tokenizer.json` and the package tokenizers (extra `[text]`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..bundle.open import Bundle
from ..errors import BundleError, DitedgeError, RequestError
from .prompts import Prompt, prompt_of_ids, text_of

MAX_TOKENIZER_BYTES = 64 << 20  # Gemma's has 34 MB
MAX_TEXT = 100_000  # characters: no model reads more of them
SHOWN = 60  # characters of a text, on either side of where it is cut


class Tokenizer:
    """The tokenizer of a bundle."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises RequestError where the bundle or this machine has none, BundleError for one that makes no sense."""
        self._limit = text_of(bundle).tokens
        self._path, self._tokenizer = _loaded(bundle)

    def prompt(self, text: str) -> tuple[Prompt, str | None]:
        """The tokens of a text, at most as many as the model reads, and the warning where it was cut."""
        if len(text) > MAX_TEXT:
            raise RequestError(f"a prompt of {len(text)} characters is longer than {MAX_TEXT}, which no model reads")
        found = self._encoded(text)
        if len(found.ids) <= self._limit:
            return prompt_of_ids(found.ids, text), None
        count = len(found.ids)
        self._tokenizer.enable_truncation(self._limit)
        try:
            kept = self._encoded(text)
        finally:
            self._tokenizer.no_truncation()
        end = max((stop for _, stop in kept.offsets), default=0)
        return prompt_of_ids(kept.ids, text), (
            f"the prompt has {count} tokens and the model reads {self._limit}: it is cut after "
            f'"{text[max(0, end - SHOWN) : end]}", what is left out begins with "{text[end : end + SHOWN].strip()}"'
        )

    def _encoded(self, text: str) -> Any:
        with _refused(self._path):
            return self._tokenizer.encode(text)


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Whatever the package raises as a BundleError: a panic of its Rust code is no Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, DitedgeError):
        raise
    except BaseException as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise BundleError(f"{path}: not a readable tokenizer ({why})") from None


def _loaded(bundle: Bundle) -> tuple[Path, Any]:
    file = text_of(bundle).tokenizer
    if file is None or "text" not in bundle.manifest.graphs:
        raise RequestError(
            f"{bundle.folder} has no text encoder: give prompts that `ditedge encode` recorded (--prompt-file)"
        )
    path = bundle.folder / file
    if bundle.manifest.files[file].bytes > MAX_TOKENIZER_BYTES:
        raise BundleError(f"{path}: larger than {MAX_TOKENIZER_BYTES >> 20} MB, not a tokenizer")
    try:
        from tokenizers import Tokenizer as Library
    except ImportError:
        raise RequestError("prompts need the package tokenizers: pip install 'ditedge[text]'") from None
    raw = bundle.read(file)
    with _refused(path):
        tokenizer = Library.from_buffer(raw)
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return path, tokenizer
