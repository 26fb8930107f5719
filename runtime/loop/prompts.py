"""Prompts: what a text encoder is given, or what it said, recorded in a file that stands in for it (docs/format.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.open import Bundle
from ..bundle.sizes import text_of
from ..bundle.text_info import TextInfo
from ..errors import BundleError, DitedgeError, RequestError
from ..files import written_atomically
from ..json_files import parse_json, read_bounded

FORMAT, VERSION = "ditedge-prompt", "1"
MAX_FILE_BYTES = 256 << 20  # 4,096 tokens of 16,384 numbers


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt, by its tokens, or by what the text encoders made of them.

    key: two prompts with the same one are the same. ids: the tokens, of each text encoder. rows: by the name that the
    graph `context` reads it by, float32: `hidden` [n, Dh], one row a token; `pooled` [Dp]; `hidden_2` of the second ...
    """

    key: str
    text: str | None = None
    ids: tuple[tuple[int, ...], ...] | None = None
    rows: Mapping[str, np.ndarray] | None = None
    negative: bool = False  # of ids: they have no instruction before them, where the model has one

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prompt) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def recorded(self) -> bool:
        return self.rows is not None

    @property
    def tokens(self) -> int:
        """Of the text encoder that has most."""
        if self.rows is None:
            return max(map(len, self.ids or ((),)))
        return max((len(rows) for rows in self.rows.values() if rows.ndim == 2), default=0)


def prompt_of_ids(
    ids: Sequence[int] | Sequence[Sequence[int]], text: str | None = None, negative: bool = False
) -> Prompt:
    """A prompt by its token ids, as the bundle's text encoder reads them; a list of each, where there are several.

    negative: of what is guided away from. Otherwise, those of the model's instruction, if it has one, are among them.
    Raises RequestError.
    """
    lists: list[Any] = list(ids)
    lists = lists if lists and all(isinstance(own, Sequence) for own in lists) else [lists]
    for own in lists:
        if not own or not all(isinstance(token, int) and 0 <= token < 2**31 for token in own):
            raise RequestError("a prompt's token ids are whole numbers from 0, and at least one")
    told: list[Any] = list(lists[0]) if len(lists) == 1 else [list(own) for own in lists]
    told = ["negative", *told] if negative else told
    return Prompt(hashlib.sha256(json.dumps(told).encode()).hexdigest(), text, tuple(map(tuple, lists)), None, negative)


def prompt_of_rows(rows: np.ndarray | Mapping[str, np.ndarray], text: str | None = None) -> Prompt:
    """rows: what the text encoders made, by name, see `Prompt`; or hidden [n, Dh] alone. Raises RequestError."""
    named = {"hidden": rows} if isinstance(rows, np.ndarray) else dict(rows)
    hashed = hashlib.sha256()
    for name in sorted(named):
        values, rank = named[name], 1 if name.startswith("pooled") else 2
        if values.ndim != rank or values.dtype != np.float32 or not values.size or not np.isfinite(values).all():
            raise RequestError("a recorded prompt is [tokens, width] finite float32 numbers")
        named[name] = np.ascontiguousarray(values)
        hashed.update(("" if name == "hidden" else name).encode() + repr(values.shape).encode())
        hashed.update(named[name].tobytes())
    return Prompt(hashed.hexdigest(), text, rows=named)


def check_prompt(bundle: Bundle, prompt: Prompt) -> None:
    """Raises RequestError for one that the bundle cannot read."""
    text = text_of(bundle)
    if not prompt.recorded and "text" not in bundle.manifest.graphs:
        raise RequestError(
            f"{bundle.folder} has no text encoder: give prompts that `ditedge encode` recorded with one that has"
        )
    if prompt.rows is None:
        _check_ids(text, prompt.ids or (), prompt.negative)
    else:
        _check_rows(text, prompt.rows)


def _check_ids(text: TextInfo, ids: Sequence[Sequence[int]], negative: bool) -> None:
    if len(ids) != len(text.encoders):
        raise RequestError(
            f"a prompt's token ids are {len(ids)} list(s), the model has {len(text.encoders)} text encoder(s): "
            "give a list for each"
        )
    for info, own in zip(text.encoders.values(), ids, strict=True):
        _check_tokens(len(own), info.most(negative))


def _check_rows(text: TextInfo, rows: Mapping[str, np.ndarray]) -> None:
    for suffix, info in text.encoders.items():
        for name, shape in info.rows(suffix, None).items():
            if name not in rows:
                raise RequestError(f"a recorded prompt has no '{name}': record it with this model's text encoder")
            found = rows[name].shape
            if found[-1] != shape[-1]:
                raise RequestError(
                    f"a recorded prompt has rows of {found[-1]} numbers, the model reads {shape[-1]}: "
                    "record it with this model's text encoder"
                )
            if len(shape) == 2:
                _check_tokens(found[0], info.tokens)
            if not info.masked and found != shape:
                raise RequestError(
                    f"a recorded prompt has {found[0]} rows of '{name}', the model reads {shape[0]} with padding: "
                    "record it with this model's text encoder"
                )


def _check_tokens(count: int, most: int) -> None:
    if count > most:
        raise RequestError(f"a prompt has {count} tokens, the model reads {most}")


def write_prompt(path: Path, text: str | None, rows: Mapping[str, np.ndarray], encoder_sha256: str | None) -> None:
    """rows: what the text encoders made, see `Prompt`, as a .safetensors file with the words that it was made from."""
    from safetensors.numpy import save

    said = {"version": VERSION, "encoder_sha256": encoder_sha256 or "", "text": text or ""}
    metadata = {FORMAT: json.dumps(said)}  # one entry: the library writes several in any order
    with written_atomically(path) as temporary:
        temporary.write_bytes(save({name: np.ascontiguousarray(values) for name, values in rows.items()}, metadata))


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
        tensors, said = load(raw), _metadata(raw)
    except DitedgeError as error:
        raise RequestError(f"{path}: {error}") from None
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise RequestError(f"{path}: not a recorded prompt of `ditedge encode` ({type(error).__name__})") from None
    names = [name for suffix, info in text.encoders.items() for name in info.rows(suffix, None)]
    if said.get("version") != VERSION or not tensors:
        raise RequestError(f"{path}: not a recorded prompt of `ditedge encode`")
    if text.encoder_sha256 is not None and said.get("encoder_sha256") != text.encoder_sha256:
        raise RequestError(
            f"{path} was recorded with another text encoder (sha256 {said.get('encoder_sha256', '')[:12]}...), "
            f"this bundle's is {text.encoder_sha256[:12]}...: record it with this bundle's"
        )
    missing = [name for name in names if name not in tensors]
    if missing:
        raise RequestError(f"{path}: not a recorded prompt of this model, it has no '{missing[0]}'")
    try:
        return prompt_of_rows({name: tensors[name] for name in names}, said.get("text", ""))
    except DitedgeError as error:
        raise RequestError(f"{path}: {error}") from None


def _metadata(raw: bytes) -> dict[str, str]:
    """What a .safetensors file says beside its tensors, which `load` has read before."""
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    said = parse_json(header["__metadata__"][FORMAT].encode("utf-8", "surrogatepass"), FORMAT, RequestError)
    return {key: value for key, value in said.items() if isinstance(value, str)}
