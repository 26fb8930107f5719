"""Prompts: what a text encoder is given, or what it said, recorded in a file that stands in for it (docs/format.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..bundle.manifest import TextInfo
from ..bundle.open import Bundle
from ..errors import BundleError, DitedgeError, RequestError
from ..files import written_atomically
from ..json_files import parse_json, read_bounded

FORMAT, VERSION = "ditedge-prompt", "1"
MAX_FILE_BYTES = 256 << 20  # 4,096 tokens of 16,384 numbers


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt, by its tokens, or by the rows that the text encoder made of them.

    key: two prompts with the same one are the same. ids: the tokens; hidden: [n, Dh] float32, one row a token.
    """

    key: str
    text: str | None = None
    ids: tuple[int, ...] | None = None
    hidden: np.ndarray | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prompt) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def tokens(self) -> int:
        return len(self.ids or ()) if self.hidden is None else len(self.hidden)


def prompt_of_ids(ids: Sequence[int], text: str | None = None) -> Prompt:
    """A prompt by its token ids, as the bundle's text encoder reads them. Raises RequestError."""
    if not ids or not all(isinstance(token, int) and 0 <= token < 2**31 for token in ids):
        raise RequestError("a prompt's token ids are whole numbers from 0, and at least one")
    return Prompt(hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest(), text, tuple(ids))


def prompt_of_rows(hidden: np.ndarray, text: str | None = None) -> Prompt:
    """hidden [n, Dh] float32: what a text encoder made of n tokens. Raises RequestError."""
    if hidden.ndim != 2 or hidden.dtype != np.float32 or not hidden.size or not np.isfinite(hidden).all():
        raise RequestError("a recorded prompt is [tokens, width] finite float32 numbers")
    rows = np.ascontiguousarray(hidden)
    return Prompt(hashlib.sha256(repr(rows.shape).encode() + rows.tobytes()).hexdigest(), text, hidden=rows)


def text_of(bundle: Bundle) -> TextInfo:
    """Raises RequestError for a model that takes classes."""
    if bundle.manifest.text is None:
        raise RequestError(f"{bundle.folder} takes classes, and no prompts: leave prompts and sizes out")
    return bundle.manifest.text


def check_prompt(bundle: Bundle, prompt: Prompt) -> None:
    """Raises RequestError for one that the bundle cannot read."""
    text = text_of(bundle)
    if prompt.hidden is None and "text" not in bundle.manifest.graphs:
        raise RequestError(
            f"{bundle.folder} has no text encoder: give prompts that `ditedge encode` recorded with one that has"
        )
    if prompt.hidden is not None and prompt.hidden.shape[1] != text.width:
        raise RequestError(
            f"a recorded prompt has rows of {prompt.hidden.shape[1]} numbers, the model reads {text.width}: "
            "record it with this model's text encoder"
        )
    if prompt.tokens > text.tokens:
        raise RequestError(f"a prompt has {prompt.tokens} tokens, the model reads {text.tokens}")


def write_prompt(path: Path, prompt: Prompt, hidden: np.ndarray, encoder_sha256: str | None) -> None:
    """hidden [n, Dh] float32 of the prompt, as a .safetensors file with what it was made from."""
    from safetensors.numpy import save

    said = {"version": VERSION, "encoder_sha256": encoder_sha256 or "", "text": prompt.text or ""}
    metadata = {FORMAT: json.dumps(said)}  # one entry: the library writes several in any order
    with written_atomically(path) as temporary:
        temporary.write_bytes(save({"hidden": np.ascontiguousarray(hidden)}, metadata))


def read_prompt(path: Path, bundle: Bundle) -> Prompt:
    """A recorded prompt, of the bundle's own text encoder. Raises RequestError."""
    raw = read_bounded(path, MAX_FILE_BYTES, RequestError)
    return _prompt(raw, path, text_of(bundle))


def empty_prompt(bundle: Bundle) -> Prompt | None:
    """The recorded prompt of no words; None where the bundle has none. Raises BundleError."""
    text = text_of(bundle)
    if text.empty is None:
        return None
    if bundle.manifest.files[text.empty].bytes > MAX_FILE_BYTES:
        raise BundleError(f"{bundle.folder / text.empty}: larger than {MAX_FILE_BYTES >> 20} MB, not a recorded prompt")
    try:
        return _prompt(bundle.read(text.empty), bundle.folder / text.empty, text)
    except RequestError as error:
        raise BundleError(str(error)) from None


def _prompt(raw: bytes, path: Path, text: TextInfo) -> Prompt:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        hidden, said = load(raw)["hidden"], _metadata(raw)
    except DitedgeError as error:
        raise RequestError(f"{path}: {error}") from None
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise RequestError(f"{path}: not a recorded prompt of `ditedge encode` ({type(error).__name__})") from None
    if said.get("version") != VERSION:
        raise RequestError(f"{path}: not a recorded prompt of `ditedge encode`")
    if text.encoder_sha256 is not None and said.get("encoder_sha256") != text.encoder_sha256:
        raise RequestError(
            f"{path} was recorded with another text encoder (sha256 {said.get('encoder_sha256', '')[:12]}...), "
            f"this bundle's is {text.encoder_sha256[:12]}...: record it with this bundle's"
        )
    try:
        return prompt_of_rows(hidden, said.get("text", ""))
    except DitedgeError as error:
        raise RequestError(f"{path}: {error}") from None


def _metadata(raw: bytes) -> dict[str, str]:
    """What a .safetensors file says beside its tensors, which `load` has read before."""
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    said = parse_json(header["__metadata__"][FORMAT].encode("utf-8", "surrogatepass"), FORMAT, RequestError)
    return {key: value for key, value in said.items() if isinstance(value, str)}
