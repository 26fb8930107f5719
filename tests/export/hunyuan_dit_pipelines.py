"""Small HunyuanDiT pipelines with random weights, of diffusers' and transformers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.export.joint_pipelines import HEAD, HEADS, SIDE, _quiet, _t5_tokenizer, _vae, noisy
from tests.export.pixel_pipelines import save_tokenizer, small_bert

BERT_WIDTH, T5_WIDTH, POOLED = 16, 24, 12
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.03, "prediction_type": "v_prediction"}


def hunyuan_dit_transformer(told: bool = True, **changes: Any) -> Any:
    """Up to version 1.1, which is told sizes, or 1.2."""
    from diffusers import HunyuanDiT2DModel

    torch.manual_seed(0)
    settings = {
        "num_attention_heads": HEADS, "attention_head_dim": HEAD, "in_channels": 4, "patch_size": 2,
        "sample_size": SIDE, "hidden_size": HEADS * HEAD, "num_layers": 4, "mlp_ratio": 2.5,
        "cross_attention_dim": BERT_WIDTH, "cross_attention_dim_t5": T5_WIDTH, "pooled_projection_dim": POOLED,
        "use_style_cond_and_image_meta_size": told,
    }  # fmt: skip
    return noisy(HunyuanDiT2DModel(**settings | changes))


def hunyuan_dit_pipeline(folder: Path, told: bool = True) -> Any:
    """diffusers' HunyuanDiTPipeline with DDPM, a BERT and an mT5. folder: for the BERT's tokenizer."""
    from diffusers import DDPMScheduler, HunyuanDiTPipeline
    from transformers import BertTokenizer, MT5Config, MT5EncoderModel

    save_tokenizer(folder)
    transformer = hunyuan_dit_transformer(told)
    t5 = MT5EncoderModel(
        MT5Config(
            vocab_size=64, d_model=T5_WIDTH, d_kv=4, d_ff=32, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False,
        )
    )  # fmt: skip
    return _quiet(
        HunyuanDiTPipeline(
            vae=_vae(channels=4, scaling_factor=0.13025, shift_factor=None),
            text_encoder=small_bert(),
            tokenizer=BertTokenizer.from_pretrained(folder),
            transformer=transformer,
            scheduler=DDPMScheduler(**BETAS, clip_sample=False, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            text_encoder_2=noisy(t5),
            tokenizer_2=_t5_tokenizer(),
        )
    )
