"""Captioned pictures of Fashion-MNIST for examples/train_text.py: captions are drawn, then images that fit them."""

from __future__ import annotations

import random
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from fashion_mnist import CLASSES, load, to_model_range
from text_captions import TRAINED, Caption, Garment, brightness_groups, caption
from text_encoder import fetch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

CAPTION_DROPOUT, TOKEN_DROPOUT, ROW_NOISE = 0.1, 0.1, 0.1  # shares, and parts of the rows' own spread
TOKENS = 32  # of a caption at most


@dataclass(frozen=True)
class Captions:
    """Captions and their token rows: rows[i] [n, Dh] float16. nothing: rows of the caption of no words."""

    captions: list[Caption]
    rows: list[Tensor]
    nothing: Tensor


def encoded_captions(count: int, share: float, encoder: Path, random_: random.Random) -> Captions:
    """count distinct captions, a share of them of one garment, and what the text encoder makes of them."""
    found: dict[str, Caption] = {}
    while len(found) < count:
        made = caption(TRAINED, random_, 1 if len(found) < share * count else 2)
        found.setdefault(made.text, made)
    model, tokenizer = text_encoder(fetch(encoder))
    captions, rows = sorted(found.values(), key=lambda made: (len(made.text), made.text)), []
    texts = [made.text for made in captions]
    for start in range(0, count, 100):
        encoded = tokenizer(texts[start : start + 100], padding=True, return_tensors="pt")
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            hidden = model(**encoded).last_hidden_state
        rows += [row[:n].half() for row, n in zip(hidden, encoded["attention_mask"].sum(1).tolist(), strict=True)]
    with torch.no_grad():
        nothing = model(**tokenizer([""], return_tensors="pt")).last_hidden_state[0].half()
    if max(len(row) for row in rows) > TOKENS:
        raise SystemExit(f"a caption has more than {TOKENS} tokens")
    return Captions(captions, rows, nothing)


def text_encoder(folder: Path) -> tuple[Any, Any]:
    """transformers' model, in eval mode, and its tokenizer."""
    from transformers import AutoTokenizer, BertModel, logging

    logging.set_verbosity_error()
    model = BertModel.from_pretrained(folder / "text_encoder", add_pooling_layer=False, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder / "tokenizer")


@dataclass(frozen=True)
class Data:
    """What batches are drawn from."""

    images: Tensor  # [N, 1, 32, 32] uint8
    groups: dict[Garment, Tensor]  # Garment -> indices of images
    captions: Captions
    of_kind: dict[int, Tensor]  # number of garments -> indices of captions


def write_captions(file: Path, count: int, share: float, encoder: Path, seed: int) -> None:
    """The file of `encoded_captions`, where it is missing: a minute or two."""
    if not file.exists():
        made = encoded_captions(count, share, encoder, random.Random(seed))
        spoken = [(each.text, [astuple(garment) for garment in each.garments]) for each in made.captions]
        torch.save({"captions": spoken, "rows": made.rows, "nothing": made.nothing}, file)


def read_data(file: Path, folder: Path | None) -> Data:
    """file: of `write_captions`; folder: of Fashion-MNIST's IDX files, None is the package's."""
    images, labels = load("train", folder)
    saved = torch.load(file, weights_only=True)
    spoken = [Caption(text, tuple(Garment(*said) for said in garments)) for text, garments in saved["captions"]]
    captions = Captions(spoken, saved["rows"], saved["nothing"])
    counts = torch.tensor([len(made.garments) for made in captions.captions])
    groups = brightness_groups(images[:, 0].numpy(), labels.numpy())
    indices = {garment: torch.from_numpy(members) for garment, members in groups.items()}
    return Data(images, indices, captions, {n: (counts == n).nonzero()[:, 0] for n in (1, 2)})


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
    chosen = data.of_kind[kind][torch.randint(len(data.of_kind[kind]), (count,))].tolist()
    garments = [data.captions.captions[i].garments for i in chosen]
    halves = []
    for place in range(kind):
        groups = [data.groups[pair[place]] for pair in garments]
        halves.append(data.images[torch.stack([group[torch.randint(len(group), ())] for group in groups])])
    said = torch.tensor([[each.label for each in pair] for pair in garments])
    bright = torch.tensor([[each.brightness is not None for each in pair] for pair in garments])
    silent = torch.rand(count) < CAPTION_DROPOUT
    said[silent], bright[silent] = len(CLASSES), False
    rows = [data.captions.nothing if silent[n] else data.captions.rows[i] for n, i in enumerate(chosen)]
    mask = pad_sequence([torch.ones(len(row), dtype=torch.int64) for row in rows], batch_first=True)
    hidden = pad_sequence(rows, batch_first=True).float()
    hidden += ROW_NOISE * hidden.std() * torch.randn_like(hidden)
    dropped = torch.rand(mask.shape) < TOKEN_DROPOUT
    dropped[:, 0] = False  # something is left of every caption
    return Batch(to_model_range(torch.cat(halves, dim=3)), hidden, mask * ~dropped, said, bright)
