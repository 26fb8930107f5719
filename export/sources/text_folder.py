"""A pipeline's text encoders and tokenizers, read by transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.errors import CheckpointError, first_line
from .diffusers_folder import read_json
from .folder_weights import sha256_of_files
from .prompt_checkpoint import EncoderUse
from .text_encoders import ENCODERS, TextEncoder, load_encoder, transformers

PLACES = ("before", "after")  # a prompt's tokens: names of what a template puts there


@dataclass(frozen=True)
class TextFolder:
    """Where a pipeline has a text encoder; nothing of it is loaded yet."""

    use: EncoderUse
    encoder: Path
    tokenizer: Path
    sha256: str  # of the encoder's config and weights

    def load(self) -> TextEncoder:
        """float32, in eval mode. Raises CheckpointError."""
        if self.use.padded and (side := self._found().padding_side) != "right":
            raise CheckpointError(f"{self.tokenizer}: 'padding_side' is {side!r}: this family's is read at the right")
        return load_encoder(self.encoder, self.use, self.pad() if self.use.padded else None)

    def tokenizer_json(self) -> str:
        """What `tokenizers` reads. Some pipelines give their tokenizer words in lower case, without outer spaces, some
        words before and after a prompt's.

        Raises CheckpointError.
        """
        library = self._found().backend_tokenizer
        said: dict[str, Any] = json.loads(library.to_str())
        if self.use.around is not None:
            said["post_processor"] = _around(library, self.use.around, said.get("post_processor"))
        if self.use.lower:
            steps = [{"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "Lowercase"}]
            own = said.get("normalizer")
            steps += own["normalizers"] if own and own.get("type") == "Sequence" else [own] if own else []
            said["normalizer"] = {"type": "Sequence", "normalizers": steps}
        return json.dumps(said | {"truncation": None, "padding": None}, ensure_ascii=False)

    def pad(self) -> int:
        """The token that fills up."""
        return int(self._found().pad_token_id or 0)

    def _found(self) -> Any:
        try:
            found = transformers().AutoTokenizer.from_pretrained(self.tokenizer, local_files_only=True)
            found.backend_tokenizer.to_str()
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"{self.tokenizer}: transformers cannot read it ({first_line(error)})") from None
        return found


def _around(library: Any, texts: tuple[str, str], own: dict[str, Any] | None) -> dict[str, Any]:
    """The tokenizer's post-processor `own`, and the tokens of both texts around a prompt's, inside what it adds."""
    steps = own.get("processors", [own]) if own else []
    templates = [step for step in steps if step["type"] == "TemplateProcessing"]
    prompt, second = ({"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B"))
    template: dict[str, Any] = {"single": [prompt], "pair": [prompt, second], "special_tokens": {}}
    template |= templates[-1] if templates else {}
    told = {name: library.encode(text, add_special_tokens=False) for name, text in zip(PLACES, texts, strict=True)}
    first, last = ({"SpecialToken": {"id": name, "type_id": 0}} for name in PLACES)
    single = [part for piece in template["single"] for part in ([first, piece, last] if piece == prompt else [piece])]
    special = {name: {"id": name, "ids": found.ids, "tokens": found.tokens} for name, found in told.items()}
    made = template | {"single": single, "special_tokens": template["special_tokens"] | special}
    others = [step for step in steps if step not in templates]
    return {"type": "Sequence", "processors": [*others, made | {"type": "TemplateProcessing"}]}


def text_folders(pipeline: Path, uses: Sequence[EncoderUse]) -> list[TextFolder]:
    """Of a pipeline folder; none where there is no text encoder. Raises CheckpointError for one of another kind, and
    where only some of those that the family reads are there."""
    there = [use for use in uses if (pipeline / use.folder / "config.json").is_file()]
    missing = [use.folder for use in uses if use not in there]
    if there and missing:
        raise CheckpointError(f"{pipeline}: has a {there[0].folder}/ and no {missing[0]}/")
    return [_text_folder(pipeline, use) for use in there]


def sha256_of_encoders(folders: Sequence[TextFolder]) -> str | None:
    """One hash over all of them, in order; that of the only one."""
    hashes = [folder.sha256 for folder in folders]
    return hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes[1:] else next(iter(hashes), None)


def _text_folder(pipeline: Path, use: EncoderUse) -> TextFolder:
    encoder, tokenizer = pipeline / use.folder, pipeline / use.tokenizer
    config = encoder / "config.json"
    kind = read_json(config).get("model_type")
    if kind not in ENCODERS:
        raise CheckpointError(f"{config}: 'model_type' is {str(kind)[:40]!r}, expected one of {', '.join(ENCODERS)}")
    if not tokenizer.is_dir():
        raise CheckpointError(f"{pipeline}: has a {use.folder}/ and no {use.tokenizer}/")
    weights = [path for pattern in ("*.safetensors", "*.bin", "*.index.json") for path in encoder.glob(pattern)]
    return TextFolder(use, encoder, tokenizer, sha256_of_files(encoder, [config, *weights]))
