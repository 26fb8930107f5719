"""Captioned pictures of Fashion-MNIST for examples/train_text.py: captions are drawn, then images that fit them.

Everything that batches are drawn from is a tensor on the training's device: a batch is a dozen indexings.
"""

from __future__ import annotations

import random
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from fashion_mnist import CLASSES, load, to_model_range
from text_captions import WIDER, Caption, Garment, brightness_groups, caption
from text_encoder import WIDTH, fetch
from torch import Tensor

TOKENS = 32  # of a caption at most
CAPTION_DROPOUT, TOKEN_DROPOUT, ROW_NOISE = 0.1, 0.02, 0.05  # shares, and parts of the rows' own spread
DRAWN = (2.0, 1.0, 5.0, 1.0, 2.0, 1.0, 2.0, 1.0, 1.0, 1.0)  # of each class: what is learned last is drawn more often


def encoded_captions(count: int, share: float, encoder: Path, random_: random.Random, device: str) -> dict[str, Any]:
    """count distinct captions, up to twice this share of them of one garment, and what the text encoder makes of them.

    "captions": (text, garments) each; "rows" [count + 1, TOKENS, WIDTH] float16, zeros after a caption's "lengths"
    [count + 1]. The last is the caption of no words.
    """
    found: dict[str, Caption] = {}
    tried = 0
    while len(found) < count:
        made = caption(WIDER, random_, 1 if tried < 2 * share * count else 2)  # of one garment there are few
        found.setdefault(made.text, made)
        tried += 1
    model, tokenizer = text_encoder(fetch(encoder))
    captions = sorted(found.values(), key=lambda made: (len(made.text), made.text))
    texts, lengths = [*(made.text for made in captions), ""], []
    rows = torch.zeros(len(texts), TOKENS, WIDTH, dtype=torch.float16)
    model.to(device)
    for start in range(0, len(texts), 100):
        encoded = tokenizer(texts[start : start + 100], padding=True, return_tensors="pt")
        length = encoded["input_ids"].shape[1]
        if length > TOKENS:
            raise SystemExit(f"a caption has more than {TOKENS} tokens")
        with torch.no_grad(), torch.autocast(device.split(":")[0], torch.bfloat16, enabled=device == "cpu"):
            hidden = model(**encoded.to(device)).last_hidden_state
        mask = encoded["attention_mask"]
        rows[start : start + 100, :length] = (hidden * mask[..., None]).half().cpu()
        lengths += mask.sum(1).tolist()
    spoken = [(each.text, [astuple(garment) for garment in each.garments]) for each in captions]
    return {"captions": spoken, "rows": rows, "lengths": torch.tensor(lengths)}


def text_encoder(folder: Path) -> tuple[Any, Any]:
    """transformers' model, in eval mode, and its tokenizer."""
    from transformers import AutoTokenizer, BertModel, logging

    logging.set_verbosity_error()
    model = BertModel.from_pretrained(folder / "text_encoder", add_pooling_layer=False, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder / "tokenizer")


@dataclass(frozen=True)
class Data:
    """What batches are drawn from: N images, M captions and, after them, that of no words, G kinds of garments."""

    images: Tensor  # [N, 1, 32, 32] uint8
    rows: Tensor  # [M + 1, TOKENS, WIDTH] float16
    lengths: Tensor  # [M + 1] int64: tokens of a caption
    garments: Tensor  # [M, 2] int64: kind of each garment, the first one's twice in captions of one
    weights: Tensor  # [M] float32: how often a caption is drawn, relative to the others
    singles: Tensor  # int64: indices of captions of one garment
    pairs: Tensor  # int64: of two
    labels: Tensor  # [G] int64
    told: Tensor  # [G] bool: the kind says something of the brightness, too
    members: Tensor  # int64: indices of images, kind after kind
    first: Tensor  # [G] int64: where a kind's begin in it
    count: Tensor  # [G] int64: how many they are

    def to(self, device: str) -> Data:
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def write_captions(file: Path, count: int, share: float, encoder: Path, seed: int, device: str) -> None:
    """The file of `encoded_captions`, where it is missing: a minute or two on a CPU."""
    if not file.exists():
        torch.save(encoded_captions(count, share, encoder, random.Random(seed), device), file)


def read_data(file: Path, folder: Path | None) -> Data:
    """file: of `write_captions`; folder: of Fashion-MNIST's IDX files, None is the package's."""
    images, labels = load("train", folder)
    saved = torch.load(file, weights_only=True)
    groups = brightness_groups(images[:, 0].numpy(), labels.numpy())
    kinds, members = list(groups), [torch.from_numpy(indices) for indices in groups.values()]
    said = [[kinds.index(Garment(*each)) for each in garments] for _, garments in saved["captions"]]
    counts, sizes = torch.tensor([len(each) for each in said]), torch.tensor([len(each) for each in members])
    garments = torch.tensor([(each[0], each[-1]) for each in said])
    labels_of_kinds = torch.tensor([kind.label for kind in kinds])
    return Data(
        images,
        saved["rows"],
        saved["lengths"],
        garments,
        torch.tensor(DRAWN)[labels_of_kinds[garments]].mean(1),
        *((counts == kind).nonzero()[:, 0] for kind in (1, 2)),
        labels_of_kinds,
        torch.tensor([kind.brightness is not None for kind in kinds]),
        torch.cat(members),
        sizes.cumsum(0) - sizes,
        sizes,
    )


@dataclass(frozen=True)
class Batch:
    """Captions of one kind, and pictures of what they say."""

    pictures: Tensor  # [N, 1, H, W] float32 in [-1, 1]
    hidden: Tensor  # [N, T, Dh] float32: token rows
    mask: Tensor  # [N, T] int64
    said: Tensor  # [N, garments] int64: what each half is, 10 where the caption is empty
    bright: Tensor  # [N, garments] bool: the caption says something of its brightness, too


def batch(count: int, data: Data, kind: int) -> Batch:
    """kind: 1 or 2 garments."""
    device, several = data.rows.device, data.singles if kind == 1 else data.pairs
    chosen = several[torch.multinomial(data.weights[several], count, replacement=True)]
    garments = data.garments[chosen, :kind]
    drawn = (torch.rand(garments.shape, device=device) * data.count[garments]).long()
    halves = data.images[data.members[data.first[garments] + drawn]]
    silent = torch.rand(count, device=device) < CAPTION_DROPOUT
    said = data.labels[garments].masked_fill(silent[:, None], len(CLASSES))
    rows = chosen.masked_fill(silent, len(data.rows) - 1)
    hidden, places = data.rows[rows].float(), torch.arange(TOKENS, device=device)
    hidden = hidden + ROW_NOISE * hidden.std() * torch.randn_like(hidden)
    kept = (torch.rand(count, TOKENS, device=device) >= TOKEN_DROPOUT) | (places == 0)  # something is left of every one
    mask = (places < data.lengths[rows, None]) & kept
    pictures = to_model_range(torch.cat(halves.unbind(1), dim=-1))
    return Batch(pictures, hidden, mask.long(), said, data.told[garments] & ~silent[:, None])
