"""Small pipelines of Stable Diffusion 3 and FLUX.1 with random weights, of diffusers' and transformers' own classes."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch

from tests.export.pixart_pipelines import WORDS

SIDE = 8  # of latents that the networks were trained on, had they been; pictures have 8 times that
T5_WIDTH, HEADS, HEAD, CHANNELS = 24, 2, 16, 16
SD3_POOLED, FLUX_POOLED = (6, 10), 12
# Qwen's byte-level tokens: those of ASCII, of a line break and of a space, and two that are merged.
QWEN_WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *map(chr, range(33, 127)), "Ċ", "Ġ", "us", "ĊĊ"]


def noisy(network: Any) -> Any:
    """Every weight random, those that start at zero among them."""
    for weight in network.parameters():
        weight.data.add_(0.05 * torch.randn_like(weight))
    return network.eval()


def sd3_transformer(dual: bool, **changes: Any) -> Any:
    """Of 3.5-medium's kind (dual attention, norms of queries and keys), or of 3.0's."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    settings = {
        "sample_size": SIDE, "patch_size": 2, "in_channels": CHANNELS, "num_layers": 2, "attention_head_dim": HEAD,
        "num_attention_heads": HEADS, "joint_attention_dim": T5_WIDTH, "caption_projection_dim": HEADS * HEAD,
        "pooled_projection_dim": sum(SD3_POOLED), "out_channels": CHANNELS, "pos_embed_max_size": 12,
        "dual_attention_layers": (0,) if dual else (), "qk_norm": "rms_norm" if dual else None,
    }  # fmt: skip
    return noisy(SD3Transformer2DModel(**settings | changes))


def flux_transformer(told: bool, **changes: Any) -> Any:
    """dev's kind, which is told its guidance, or schnell's."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    settings = {
        "in_channels": 4 * CHANNELS, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": HEAD,
        "num_attention_heads": HEADS, "joint_attention_dim": T5_WIDTH, "pooled_projection_dim": FLUX_POOLED,
        "guidance_embeds": told, "axes_dims_rope": (4, 6, 6),
    }  # fmt: skip
    return noisy(FluxTransformer2DModel(**settings | changes))


def sd3_pipeline(dual: bool = True, t5: bool = True) -> Any:
    """diffusers' StableDiffusion3Pipeline with flow Euler of shift 3. t5: with its third text encoder."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    transformer = sd3_transformer(dual)
    clips = [_clip(width, pooled, True) for width, pooled in ((8, SD3_POOLED[0]), (12, SD3_POOLED[1]))]
    return _quiet(
        StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_vae(),
            text_encoder=clips[0],
            tokenizer=_clip_tokenizer(),
            text_encoder_2=clips[1],
            tokenizer_2=_clip_tokenizer(pad_token="!"),
            text_encoder_3=_t5() if t5 else None,
            tokenizer_3=_t5_tokenizer() if t5 else None,
        )
    )


def flux_pipeline(told: bool = True) -> Any:
    """diffusers' FluxPipeline: dev with a shift by size, or schnell without any."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    transformer = flux_transformer(told)
    settings = {"shift": 3.0, "use_dynamic_shifting": True} if told else {"shift": 1.0}
    return _quiet(
        FluxPipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(**settings),
            vae=_vae(),
            text_encoder=_clip(FLUX_POOLED, FLUX_POOLED, False),
            tokenizer=_clip_tokenizer(),
            text_encoder_2=_t5(),
            tokenizer_2=_t5_tokenizer(),
        )
    )


def aura_flow_transformer(**changes: Any) -> Any:
    from diffusers import AuraFlowTransformer2DModel

    torch.manual_seed(0)
    settings = {
        "sample_size": SIDE, "in_channels": 4, "out_channels": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 1,
        "attention_head_dim": HEAD, "num_attention_heads": HEADS, "joint_attention_dim": T5_WIDTH,
        "caption_projection_dim": HEADS * HEAD, "pos_embed_max_size": 144,
    }  # fmt: skip
    return noisy(AuraFlowTransformer2DModel(**settings | changes))


def aura_flow_pipeline() -> Any:
    """diffusers' AuraFlowPipeline with a UMT5, flow Euler of shift 1.73."""
    from diffusers import AuraFlowPipeline, FlowMatchEulerDiscreteScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    transformer = aura_flow_transformer()
    encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=64, d_model=T5_WIDTH, d_kv=4, d_ff=32, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False,
        )
    )  # fmt: skip
    return _quiet(
        AuraFlowPipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
            vae=_vae(channels=4, scaling_factor=0.13025, shift_factor=None),
            text_encoder=noisy(encoder),
            tokenizer=_t5_tokenizer(),
        )
    )


def z_image_transformer(**changes: Any) -> Any:
    from diffusers import ZImageTransformer2DModel

    torch.manual_seed(0)
    settings = {
        "in_channels": CHANNELS, "dim": HEADS * HEAD, "n_layers": 2, "n_refiner_layers": 1, "n_heads": HEADS,
        "n_kv_heads": HEADS, "cap_feat_dim": T5_WIDTH, "axes_dims": [4, 6, 6],
    }  # fmt: skip
    return noisy(ZImageTransformer2DModel(**settings | changes))


def z_image_pipeline() -> Any:
    """diffusers' ZImagePipeline with flow Euler of shift 3, and a Qwen3 that is given a chat."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline
    from transformers import Qwen3Config, Qwen3Model

    transformer = z_image_transformer()
    encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=len(QWEN_WORDS), hidden_size=T5_WIDTH, intermediate_size=32, num_hidden_layers=2, head_dim=8,
            num_attention_heads=4, num_key_value_heads=2, use_cache=False, pad_token_id=0, eos_token_id=2,
        )
    )  # fmt: skip
    return _quiet(
        ZImagePipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_vae(),
            text_encoder=noisy(encoder),
            tokenizer=qwen_tokenizer(),
        )
    )


def qwen_tokenizer() -> Any:
    """Bytes, and what a chat is made of, as Qwen3's own template says it of what a user says."""
    from transformers import Qwen2Tokenizer

    made = Qwen2Tokenizer(vocab={token: i for i, token in enumerate(QWEN_WORDS)}, merges=[("u", "s"), ("Ċ", "Ċ")])
    made.add_special_tokens({"additional_special_tokens": QWEN_WORDS[1:3]})
    made.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return made


def export_joint(pipeline: Any, folder: Path, out: Path) -> Path:
    """Saves the pipeline to `folder` and exports it to the bundle `out`."""
    from ditedge.export import ExportOptions, bundle_from_checkpoint

    pipeline.save_pretrained(folder)
    bundle_from_checkpoint(folder, out, ExportOptions())
    return out


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _vae(channels: int = CHANNELS, **changes: Any) -> Any:
    """The same beside every network: it is exported once. Its scale and shift are Stable Diffusion 3's."""
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    settings = {
        "block_out_channels": (4, 4, 8, 8), "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4, "latent_channels": channels, "norm_num_groups": 4,
        "sample_size": 8 * SIDE, "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False,
        "use_post_quant_conv": False,
    }  # fmt: skip
    return AutoencoderKL(**settings | changes).eval()


def _clip_tokenizer(**special: str) -> Any:
    """Letters, as bytes within a word and at its end."""
    from transformers import CLIPTokenizer

    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocab = {token: i for i, token in enumerate(["<|startoftext|>", "<|endoftext|>", "!", *letters])}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77, **special)


def _clip(width: int, pooled: int, projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=64, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=pooled, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return noisy((CLIPTextModelWithProjection if projected else CLIPTextModel)(config))


def _t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    words = [(f"\u2581{word}", -3.0 - i / 10) for i, word in enumerate(WORDS)]
    letters = [(letter, -9.0) for letter in string.ascii_lowercase]
    return T5Tokenizer(vocab=[*special, *words, *letters], extra_ids=0)


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=64, d_model=T5_WIDTH, d_kv=4, d_ff=32, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False,
        )
    ).eval()  # fmt: skip
