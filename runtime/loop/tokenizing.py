"""Words to token ids by the bundle's `text/tokenizer.json` and the package tokenizers (extra `[text]`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..bundle.open import Bundle
from ..bundle.sizes import text_of
from ..bundle.text_info import EncoderInfo
from ..errors import BundleError, DitedgeError, RequestError
from .prompts import Prompt, prompt_of_ids

MAX_TOKENIZER_BYTES = 64 << 20  # Gemma's has 34 MB
MAX_TEXT = 100_000  # characters: no model reads more of them
SHOWN = 60  # characters of a text, on either side of where it is cut


class Tokenizer:
    """The tokenizers of a bundle, one of each text encoder."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises RequestError where the bundle or this machine has none, BundleError for one that makes no sense."""
        infos = text_of(bundle).encoders.values()
        self._own = [_Own(*_loaded(bundle, info.tokenizer), info) for info in infos]
        self._instructs = any(info.instruction is not None for info in infos)

    def prompt(self, text: str, negative: bool = False) -> tuple[Prompt, str | None]:
        """The tokens of a text, at most as many as the model reads, and the warning where it was cut.

        negative: of what is guided away from, which no instruction stands before.
        """
        if len(text) > MAX_TEXT:
            raise RequestError(f"a prompt of {len(text)} characters is longer than {MAX_TEXT}, which no model reads")
        found = [own.ids(text, negative) for own in self._own]
        cuts = [cut for _, cut in found if cut is not None]
        more = (
            f" (so read by text encoder {[cut for _, cut in found].index(cuts[0]) + 1})" if cuts and found[1:] else ""
        )
        made = prompt_of_ids([ids for ids, _ in found], text, negative and self._instructs)
        return made, cuts[0] + more if cuts else None


class _Own:
    """The tokenizer of one text encoder."""

    def __init__(self, path: Path, tokenizer: Any, info: EncoderInfo) -> None:
        self._path, self._tokenizer, self._info = path, tokenizer, info

    def ids(self, text: str, negative: bool) -> tuple[list[int], str | None]:
        limit, before = self._info.most(negative), ""
        instruction = self._info.instruction
        if instruction is not None:
            text = text if instruction.whole else text.lower().strip()
            before = "" if negative else instruction.text
        found = self._encoded(before + text)
        if len(found.ids) <= limit:
            return found.ids, None
        count = len(found.ids)
        self._tokenizer.enable_truncation(limit)
        try:
            kept = self._encoded(before + text)
        finally:
            self._tokenizer.no_truncation()
        end = max(0, max((stop for _, stop in kept.offsets), default=0) - len(before))
        left_out = limit - self._info.tokens
        return kept.ids, (
            f"the prompt has {count - left_out} tokens and the model reads {self._info.tokens}: it is cut after "
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


def _loaded(bundle: Bundle, file: str | None) -> tuple[Path, Any]:
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
