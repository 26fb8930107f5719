"""Small Sana pipelines with random weights, of diffusers' and transformers' own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ditedge.export import ExportOptions, bundle_from_checkpoint
from ditedge.export.sources.sana_folder import INSTRUCTION

SIDE = 4  # of latents that the network was trained on, had it been; pictures have 8 times that
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]


def small_sana(**changes: Any) -> Any:
    from diffusers import SanaTransformer2DModel

    torch.manual_seed(0)
    settings = {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2,
        "num_cross_attention_heads": 2, "cross_attention_head_dim": 16, "cross_attention_dim": 32, "sample_size": SIDE,
        "caption_channels": 16, "patch_size": 1,
    }  # fmt: skip
    network = SanaTransformer2DModel(**settings | changes)
    for weight in network.parameters():
        weight.data.add_(0.05 * torch.randn_like(weight))
    return network.eval()


def small_tokenizer() -> Any:
    """Gemma's kind of it, of 400 pieces that the pipelines' instruction has: its last one merges with a prompt's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import GemmaTokenizer

    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer, made.pre_tokenizer = (
        normalizers.Replace(" ", "▁"),
        pre_tokenizers.Split(" ", "merged_with_previous"),
    )
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    made.train_from_iterator([INSTRUCTION, "a red fox in the snow"], trainer)
    model = json.loads(made.to_str())["model"]
    return GemmaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], add_bos_token=True)


def small_pipeline(sprint: bool = False) -> Any:
    """diffusers' SanaPipeline with its DPM-Solver++ of a flow, or SanaSprintPipeline; every weight is random."""
    import diffusers
    from transformers import Gemma2Config, Gemma2Model

    own = {"qk_norm": "rms_norm_across_heads", "guidance_embeds": True} if sprint else {}
    transformer = small_sana(**own)
    torch.manual_seed(1)  # the same encoder and decoder beside either: they are exported once
    encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=400, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, pad_token_id=0, eos_token_id=1, bos_token_id=2,
            use_cache=False,
        )
    )  # fmt: skip
    vae = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=4, scaling_factor=0.41407, encoder_block_types="ResBlock",
        encoder_block_out_channels=(4, 4, 4, 8), encoder_layers_per_block=(1,) * 4, decoder_layers_per_block=(1,) * 4,
        decoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",), decoder_block_out_channels=(4, 4, 4, 8),
        decoder_qkv_multiscales=((), (), (), (5,)), encoder_qkv_multiscales=((),) * 4,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipeline = (diffusers.SanaSprintPipeline if sprint else diffusers.SanaPipeline)(
        tokenizer=small_tokenizer(),
        text_encoder=encoder.eval(),
        vae=vae.eval(),
        transformer=transformer,
        scheduler=diffusers.SCMScheduler() if sprint else scheduler,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def export_sana(pipeline: Any, folder: Path, out: Path) -> Path:
    """Saves the pipeline to `folder` and exports it to the bundle `out`."""
    pipeline.save_pretrained(folder)
    bundle_from_checkpoint(folder, out, ExportOptions())
    return out
