"""Text encoders of transformers, as modules of token ids: one entry of ENCODERS is one kind of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...runtime.errors import CheckpointError, first_line
from .diffusers_folder import read_json
from .prompt_checkpoint import EncoderUse


class TextEncoder(nn.Module):
    """ids [P, T] int64, and mask [P, T] int64 where the use has one -> hidden [P, T, Dh], pooled [P, Dp], or one.

    pad: the token that fills up, where it is masked by what it is: behind the last other token; pooled is then how
    many tokens are before it, [P, 1].
    """

    def __init__(self, model: nn.Module, use: EncoderUse, pad: int | None = None) -> None:
        super().__init__()
        self.model, self.layer, self.pad = model, use.layer, pad
        self.reads, self.pools = use.info.width is not None, use.info.pooled is not None

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Any:
        given: dict[str, Any] = (
            {"input_ids": ids, "output_hidden_states": True} if self.layer != -1 else {"input_ids": ids}
        )
        if self.pad is not None:
            number = torch.arange(1, ids.shape[1] + 1, device=ids.device)
            mask = (number <= (number * (ids != self.pad)).amax(dim=1, keepdim=True)).long()
        found = self.model(**given) if mask is None else self.model(**given, attention_mask=mask)
        if isinstance(self.layer, tuple):
            hidden = torch.cat([found.hidden_states[layer] for layer in self.layer], dim=-1)
        else:
            hidden = found.last_hidden_state if self.layer == -1 else found.hidden_states[self.layer]
        if not self.pools:
            return hidden
        if self.pad is not None and mask is not None:
            return hidden, mask.sum(dim=1, keepdim=True).float()
        pooled = found.text_embeds if hasattr(found, "text_embeds") else found.pooler_output
        return (hidden, pooled) if self.reads else pooled


def _t5(transformers: Any, config: dict[str, Any]) -> Any:
    return transformers.T5EncoderModel


def _umt5(transformers: Any, config: dict[str, Any]) -> Any:
    """Which has relative positions of its own in every layer."""
    return transformers.UMT5EncoderModel


def _mt5(transformers: Any, config: dict[str, Any]) -> Any:
    return transformers.MT5EncoderModel


def _clip(transformers: Any, config: dict[str, Any]) -> Any:
    """With the projection of its pooled row where it was saved with one."""
    named = str((config.get("architectures") or ["CLIPTextModel"])[0])
    return transformers.CLIPTextModelWithProjection if "Projection" in named else transformers.CLIPTextModel


def _gemma2(transformers: Any, config: dict[str, Any]) -> Any:
    """Without the layer that makes words, whichever class it was saved with."""
    return transformers.Gemma2Model


def _qwen3(transformers: Any, config: dict[str, Any]) -> Any:
    """Likewise."""
    return transformers.Qwen3Model


def _bert(transformers: Any, config: dict[str, Any]) -> Any:
    return transformers.BertModel  # its pooled row is not read, and so in no graph


# 'model_type' of a config.json -> the class, chosen by the rest of it
ENCODERS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "t5": _t5,
    "umt5": _umt5,
    "mt5": _mt5,
    "clip_text_model": _clip,
    "gemma2": _gemma2,
    "qwen3": _qwen3,
    "bert": _bert,
}


def load_encoder(folder: Path, use: EncoderUse, pad: int | None = None) -> TextEncoder:
    """float32, in eval mode. pad: see `TextEncoder`. Raises CheckpointError."""
    library, config = transformers(), read_json(folder / "config.json")
    try:
        model = ENCODERS[str(config.get("model_type"))](library, config).from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
        )
    except Exception as error:  # transformers raises whatever it likes
        raise CheckpointError(f"{folder}: transformers cannot read it ({first_line(error)})") from None
    most = max(use.layer) if isinstance(use.layer, tuple) else 0
    if most and (layers := model.config.num_hidden_layers) < most:
        raise CheckpointError(f"{folder}: the text encoder has {layers} layers, rows of layer {most} are read")
    return TextEncoder(model.eval().requires_grad_(False), use, pad).eval()


def transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise CheckpointError(
            "the text encoder is read by transformers, which is not installed: pip install 'ditedge[diffusers]', "
            "or --no-text for a bundle that takes recorded prompts"
        ) from None
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers
