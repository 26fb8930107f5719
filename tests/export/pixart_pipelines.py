"""Small PixArt pipelines with random weights, of diffusers' and transformers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ditedge.export import ExportOptions, bundle_from_checkpoint

WORDS = ("a", "red", "fox", "in", "the", "snow", "dark", "ankle", "boot", "on", "of", "handbag", "left", "sneaker")
SIDE = 8  # of latents that the network was trained on, had it been; pictures have 8 times that


def small_transformer(**changes: Any) -> Any:
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(0)
    settings = {
        "num_attention_heads": 3, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2,
        "cross_attention_dim": 24, "sample_size": SIDE, "caption_channels": 16, "interpolation_scale": 2,
    }  # fmt: skip
    network = PixArtTransformer2DModel(**settings | changes)
    for weight in network.parameters():
        weight.data.add_(0.05 * torch.randn_like(weight))
    return network.eval()


def small_pipeline(sigma: bool = False) -> Any:
    """diffusers' PixArtAlphaPipeline or PixArtSigmaPipeline with DPM-Solver++ 2M; every weight is random."""
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtSigmaPipeline
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    transformer = small_transformer()
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    words = [(f"\u2581{word}", -3.0 - i / 10) for i, word in enumerate(WORDS)]
    tokenizer = T5Tokenizer(
        vocab=[*special, *words, *((letter, -9.0) for letter in map(chr, range(97, 123)))], extra_ids=0
    )
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=64, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
            is_encoder_decoder=False, use_cache=False,
        )
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=4, sample_size=8 * SIDE,
        scaling_factor=0.13025 if sigma else 0.18215,
    )  # fmt: skip
    pipeline = (PixArtSigmaPipeline if sigma else PixArtAlphaPipeline)(
        tokenizer=tokenizer,
        text_encoder=encoder.eval(),
        vae=vae.eval(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def export_pixart(pipeline: Any, folder: Path, out: Path) -> Path:
    """Saves the pipeline to `folder` and exports it to the bundle `out`."""
    pipeline.save_pretrained(folder)
    bundle_from_checkpoint(folder, out, ExportOptions())
    return out
