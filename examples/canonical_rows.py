"""What captions become: the rows of one wording of their garments, which the text demo's DiT understands well.

`text_captions.CANONICAL` has that wording. Tokens of what a caption says of a garment get the rows of what the
canonical one says of it, the last token that of the last; all other tokens get those of its other tokens, in turn.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from fashion_mnist import CLASSES
from text_captions import CANONICAL, Caption, Garment, caption_of
from text_encoder import WIDTH
from torch import Tensor

KINDS = tuple(Garment(label, word) for label in range(len(CLASSES)) for word in (None, "dark", "bright"))
PLACES = ("left", "right", "alone")
CONTENTS = (*((left, right) for left in KINDS for right in KINDS), *((kind,) for kind in KINDS), ())
OTHER, PADDING = -1, -2  # of tokens that say nothing of a garment
OTHERS = 0.3  # weight of all other tokens of a caption, against 1 of what is said of a garment


@dataclass(frozen=True)
class Rows:
    """A canonical caption's. said: of what it says of each garment, from the last token; others: from the first."""

    said: tuple[Tensor, ...]  # of [tokens, WIDTH] float32
    others: Tensor  # [tokens, WIDTH]


@dataclass(frozen=True)
class Canon:
    """rows: by what captions say. ends: the last row that is said of each kind at each place, whatever stands on the
    other side; spread: the variance of these rows, a mean over their numbers."""

    rows: dict[tuple[Garment, ...], Rows]
    ends: Tensor  # [places, kinds, WIDTH]
    spread: Tensor  # []


@torch.no_grad()
def canon(model: Any, tokenizer: Any) -> Canon:
    """By a text encoder (transformers' BertModel) as it was trained, and its tokenizer."""
    rows = {}
    captions = [caption_of(CANONICAL, random.Random(0), each) if each else Caption("", ()) for each in CONTENTS]
    for start in range(0, len(captions), 64):
        some = captions[start : start + 64]
        encoded, owners = tokens_of(tokenizer, some)
        for made, hidden, owner in zip(some, model(**encoded).last_hidden_state, owners, strict=True):
            said = tuple(hidden[owner == place].flip(0) for place in range(len(made.garments)))
            rows[made.garments] = Rows(said, hidden[owner == OTHER])
    pairs = [[[rows[left, right].said[side][0] for right in KINDS] for left in KINDS] for side in range(2)]
    every = torch.stack([torch.stack([torch.stack(row) for row in side]) for side in pairs])  # [2, kinds, kinds, WIDTH]
    alone = torch.stack([rows[(kind,)].said[0][0] for kind in KINDS])
    ends = torch.stack([every[0].mean(1), every[1].mean(0), alone])
    return Canon(rows, ends, every.flatten(0, 2).var(0).mean())


def tokens_of(tokenizer: Any, captions: list[Caption]) -> tuple[Any, Tensor]:
    """-> what a text encoder takes of them, and [N, T] int64: the number of the garment that a token says something
    of, OTHER, or PADDING."""
    encoded = tokenizer(
        [made.text for made in captions], padding=True, return_tensors="pt", return_offsets_mapping=True
    )
    first, last = encoded.pop("offset_mapping").unbind(-1)
    owners = torch.where(encoded["attention_mask"].bool(), OTHER, PADDING)
    for made, begins, ends, owner in zip(captions, first, last, owners, strict=True):
        for place, (begin, end) in enumerate(made.spans):
            owner[(begins >= begin) & (ends <= end) & (ends > begins)] = place
    return encoded, owners


@dataclass(frozen=True)
class Wanted:
    """Of a batch of captions."""

    rows: Tensor  # [N, T, WIDTH]
    weights: Tensor  # [N, T]: 1 for each caption's garment, OTHERS for all the rest of it, over N
    ends: (
        Tensor  # [N, T] int64: at the last token of what is said of a garment its row of Canon.ends, flattened; else -1
    )


def wanted(captions: list[Caption], owners: Tensor, canon: Canon) -> Wanted:
    """owners: of `tokens_of`."""
    rows, weights = torch.zeros(*owners.shape, WIDTH), torch.zeros(owners.shape)
    ends = torch.full(owners.shape, -1)
    for i, made in enumerate(captions):
        taught = canon.rows[made.garments]
        for place, (garment, said) in enumerate(zip(made.garments, taught.said, strict=True)):
            tokens = (owners[i] == place).nonzero()[:, 0].flip(0)
            rows[i, tokens] = said[torch.arange(len(tokens)).clamp(max=len(said) - 1)]
            weights[i, tokens] = 1 / len(tokens)
            side = place if len(made.garments) == 2 else PLACES.index("alone")
            ends[i, tokens[0]] = side * len(KINDS) + KINDS.index(garment)
        tokens = (owners[i] == OTHER).nonzero()[:, 0]
        rows[i, tokens] = taught.others[torch.arange(len(tokens)) % len(taught.others)]
        rows[i, tokens[-1]] = taught.others[-1]
        weights[i, tokens] = OTHERS / len(tokens)
    return Wanted(rows, weights / len(captions), ends)
