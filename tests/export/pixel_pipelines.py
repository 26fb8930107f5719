"""A small PixArt pipeline of pixels, without a VAE, whose text encoder is a BERT; every weight is random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.export.pixart_pipelines import WORDS, small_transformer

SIDE = 8  # of the pictures that the network was trained on, had it been
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def small_bert() -> Any:
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=32, max_position_embeddings=128,
    )  # fmt: skip
    return BertModel(config).eval()


def save_pixel_pipeline(folder: Path, channels: int = 1) -> tuple[Any, Any]:
    """-> diffusers' transformer and transformers' encoder, as they were saved to the pipeline `folder`."""
    from diffusers import DPMSolverMultistepScheduler

    transformer = small_transformer(in_channels=channels, out_channels=channels, sample_size=SIDE)
    encoder = small_bert()
    transformer.save_pretrained(folder / "transformer")
    encoder.save_pretrained(folder / "text_encoder")
    DPMSolverMultistepScheduler().save_pretrained(folder / "scheduler")
    save_tokenizer(folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "PixArtAlphaPipeline", "vae": [None, None]}))
    return transformer, encoder


def save_tokenizer(folder: Path) -> None:
    """BERT's own: WordPiece in lower case, with a padding and a cut that a bundle must not take over."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=32)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": 4}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | {"cls_token": "[CLS]", "sep_token": "[SEP]"}))
