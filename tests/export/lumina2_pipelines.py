"""A small Lumina 2 pipeline with random weights, of diffusers' and transformers' own classes."""

from __future__ import annotations

from typing import Any

import torch

from tests.export.joint_pipelines import CHANNELS, SIDE, _quiet, _vae, noisy
from tests.export.sana_pipelines import small_tokenizer

HEADS, KV_HEADS, HEAD, GEMMA_WIDTH = 4, 2, 12, 16


def lumina2_transformer(**changes: Any) -> Any:
    from diffusers import Lumina2Transformer2DModel

    torch.manual_seed(0)
    settings = {
        "sample_size": SIDE, "patch_size": 2, "in_channels": CHANNELS, "hidden_size": HEADS * HEAD, "num_layers": 2,
        "num_refiner_layers": 1, "num_attention_heads": HEADS, "num_kv_heads": KV_HEADS, "multiple_of": 32,
        "axes_dim_rope": (4, 4, 4), "cap_feat_dim": GEMMA_WIDTH,
    }  # fmt: skip
    return noisy(Lumina2Transformer2DModel(**settings | changes))


def lumina2_pipeline() -> Any:
    """diffusers' Lumina2Pipeline with flow Euler of shift 6."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline
    from transformers import Gemma2Config, Gemma2Model

    transformer = lumina2_transformer()
    encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=400, hidden_size=GEMMA_WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, pad_token_id=0, eos_token_id=1, bos_token_id=2,
            use_cache=False,
        )
    )  # fmt: skip
    return _quiet(
        Lumina2Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
            vae=_vae(),
            text_encoder=noisy(encoder),
            tokenizer=small_tokenizer(),
        )
    )
