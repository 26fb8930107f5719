"""Small FLUX.2 pipelines with random weights, of diffusers' and transformers' own classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from ditedge.export.sources import flux2_folder
from tests.export.joint_pipelines import HEAD, HEADS, QWEN_WORDS, SIDE, _quiet, noisy, qwen_tokenizer

CHANNELS, QWEN_WIDTH = 8, 8  # of the VAE's latents, a quarter of the network's
ROWS = 3 * QWEN_WIDTH
THOUGHT = ["<think>", "</think>"]
FIRST = (1, 2, 3)  # hidden states that a shallow encoder has


def flux2_transformer(told: bool = False, **changes: Any) -> Any:
    """klein's kind, or dev's, which is told its guidance."""
    from diffusers import Flux2Transformer2DModel

    torch.manual_seed(0)
    settings = {
        "in_channels": 4 * CHANNELS, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": HEAD,
        "num_attention_heads": HEADS, "joint_attention_dim": ROWS, "axes_dims_rope": (4, 4, 4, 4),
        "guidance_embeds": told,
    }  # fmt: skip
    return noisy(Flux2Transformer2DModel(**settings | changes))


def klein_pipeline(distilled: bool = True, layers: int = 28) -> Any:
    """diffusers' Flux2KleinPipeline with a Qwen3 of as many layers as are read and one more, or a `shallow` one."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
    from transformers import Qwen3Config, Qwen3ForCausalLM

    transformer = flux2_transformer()
    tokenizer = thinking_tokenizer()
    encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=QWEN_WIDTH, intermediate_size=12, num_hidden_layers=layers, head_dim=4,
            num_attention_heads=2, num_key_value_heads=1, use_cache=False, pad_token_id=0, eos_token_id=2,
        )
    )  # fmt: skip
    return _quiet(
        Flux2KleinPipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=flux2_vae(),
            text_encoder=noisy(encoder),
            tokenizer=tokenizer,
            is_distilled=distilled,
        )
    )


def dev_pipeline() -> Any:
    """diffusers' Flux2Pipeline without its text encoder, a Mistral 3."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Pipeline

    transformer, scheduler = flux2_transformer(True), FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return _quiet(
        Flux2Pipeline(transformer=transformer, scheduler=scheduler, vae=flux2_vae(), text_encoder=None, tokenizer=None)
    )


@contextmanager
def shallow() -> Iterator[None]:
    """Folders are read as if `FIRST` were the released models' layers: to trace 27 takes a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flux2_folder, "LAYERS", FIRST)
        yield


def flux2_vae(**changes: Any) -> Any:
    """With statistics of latents as training leaves them."""
    from diffusers import AutoencoderKLFlux2

    torch.manual_seed(1)
    settings = {
        "block_out_channels": (4, 4, 8, 8), "latent_channels": CHANNELS, "norm_num_groups": 4, "layers_per_block": 1,
        "sample_size": 16 * SIDE,
    }  # fmt: skip
    vae = AutoencoderKLFlux2(**settings | changes).eval()
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 4.0)
    return vae


def thinking_tokenizer() -> Any:
    """`qwen_tokenizer` whose template says that nothing was thought, where nothing is to be."""
    made = qwen_tokenizer()
    made.add_special_tokens({"additional_special_tokens": [*QWEN_WORDS[1:3], *THOUGHT]})
    made.chat_template = made.chat_template.replace(
        "<|im_start|>assistant\n",
        "<|im_start|>assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
    )
    return made
