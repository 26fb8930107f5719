"""A pipeline's text encoder and tokenizer (T5), read by transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...runtime.errors import CheckpointError, first_line
from .diffusers_folder import read_json
from .folder_weights import sha256_of_files

MODELS = ("t5", "umt5")


class TextEncoder(nn.Module):
    """ids [P, T] int64, mask [P, T] int64 -> hidden [P, T, Dh] float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state


@dataclass(frozen=True)
class TextFolder:
    """Where a pipeline has its text encoder; nothing of it is loaded yet."""

    encoder: Path
    tokenizer: Path
    sha256: str  # of the encoder's config and weights

    def load(self) -> TextEncoder:
        """float32, in eval mode. Raises CheckpointError."""
        transformers = _transformers()
        try:
            model = transformers.T5EncoderModel.from_pretrained(
                self.encoder, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
            )
        except Exception as error:  # transformers raises whatever it likes
            raise CheckpointError(f"{self.encoder}: transformers cannot read it ({first_line(error)})") from None
        return TextEncoder(model.eval().requires_grad_(False)).eval()

    def tokenizer_json(self) -> str:
        """What `tokenizers` reads. PixArt's pipelines give their tokenizer words in lower case, without outer spaces.

        Raises CheckpointError.
        """
        transformers = _transformers()
        try:
            found = transformers.AutoTokenizer.from_pretrained(self.tokenizer, local_files_only=True)
            said: dict[str, Any] = json.loads(found.backend_tokenizer.to_str())
        except Exception as error:
            raise CheckpointError(f"{self.tokenizer}: transformers cannot read it ({first_line(error)})") from None
        steps: list[Any] = [{"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "Lowercase"}]
        own = said.get("normalizer")
        steps += own["normalizers"] if own and own.get("type") == "Sequence" else [own] if own else []
        said |= {"normalizer": {"type": "Sequence", "normalizers": steps}, "truncation": None, "padding": None}
        return json.dumps(said, ensure_ascii=False)

    def pad(self) -> int:
        return int(read_json(self.encoder / "config.json").get("pad_token_id") or 0)


def text_folder(pipeline: Path) -> TextFolder | None:
    """Of a pipeline folder; None where there is no text encoder. Raises CheckpointError for one of another kind."""
    encoder, tokenizer = pipeline / "text_encoder", pipeline / "tokenizer"
    config = encoder / "config.json"
    if not config.is_file():
        return None
    kind = read_json(config).get("model_type")
    if kind not in MODELS:
        raise CheckpointError(f"{config}: 'model_type' is {str(kind)[:40]!r}, expected one of {', '.join(MODELS)}")
    if not tokenizer.is_dir():
        raise CheckpointError(f"{pipeline}: has a text_encoder/ and no tokenizer/")
    weights = [path for pattern in ("*.safetensors", "*.bin", "*.index.json") for path in encoder.glob(pattern)]
    return TextFolder(encoder, tokenizer, sha256_of_files(encoder, [config, *weights]))


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise CheckpointError(
            "the text encoder is read by transformers, which is not installed: pip install 'ditedge[diffusers]', "
            "or --no-text for a bundle that takes recorded prompts"
        ) from None
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers
