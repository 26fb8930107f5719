"""Teach the text demo's encoder that many wordings mean one thing: a LoRA of all-MiniLM-L6-v2.

    python examples/train_text_encoder.py --out runs/fashion-minilm-lora.safetensors --minutes 18

The DiT has seen few pictures, and understands some captions better than others. Text alone is cheap: here the encoder
learns to make of every caption the rows of the canonical one of the same garments (canonical_rows.py), as it made them
itself before. No picture is needed, and the DiT is not changed. `examples/text_encoder.py --lora` merges the result.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from canonical_rows import Canon, Wanted, canon, tokens_of, wanted
from captioned_images import text_encoder
from safetensors.torch import load_file, save_file
from text_captions import WIDER, Caption, Language, caption
from text_encoder import ENCODER, WIDTH, fetch
from torch import Tensor, nn

ADAPTED = ("query", "key", "value", "dense")  # modules of a BertLayer, by the last part of their names
SINGLES, SILENT = 0.12, 0.01  # shares of captions of one garment, and of no words
SHARPNESS = 10  # of telling rows from others, per squared distance relative to their spread
ARTICLES = ("a",) * 20
BEFORE_NOUNS = (
    "nice", "old", "new", "small", "big", "modern", "cheap", "expensive", "classic", "comfortable", "beautiful",
    "simple", "fashionable", "good", "plain", "red", "blue", "striped", "cotton", "favourite", "vintage",
    "everyday", "smart", "children's", "men's",
)  # fmt: skip
AFTER_NOUNS = (
    "for the city", "for every day", "for travelling", "for children", "for a walk", "from the shop",
    "in the photo", "of good quality", "to wear", "for rainy days", "for cold days", "for women", "for men",
    "with a pattern", "with pockets", "to go out with", "for school", "for the holidays", "for sale",
    "made of cotton", "that is new", "for the spring", "at home",
)  # fmt: skip
BEFORE = ("a photo of ", "please draw ", "photo: ", "I want ", "an image with ", "picture: ", "show ")


class Adapted(nn.Module):
    """x W' + b + x down' up': down [r, in], up [out, r], which begins with zeros."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, linear.in_features) / math.sqrt(linear.in_features))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + F.linear(F.linear(x, self.down), self.up)


def adapt(model: nn.Module, rank: int, dropout: float) -> dict[str, Adapted]:
    """A LoRA of every linear layer of a BertModel's blocks, by the layer's name. Nothing else learns."""
    model.requires_grad_(False)
    found = {}
    for name, module in list(model.encoder.named_modules(prefix="encoder")):
        if isinstance(module, nn.Dropout):
            module.p = dropout
        elif isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in ADAPTED:
            found[name] = Adapted(module, rank)
            model.set_submodule(name, found[name])
    return found


def spoken(language: Language) -> Language:
    """The language as others would speak it, too: a full stop, no commas, more words, other articles or none."""
    one, two = (
        (*of, *(each.replace(",", "") for each in of), *(f"{each}." for each in of))
        for of in (language.one, language.two)
    )
    before = tuple(f"{words}{each}" for words in BEFORE for each in language.two)
    more = (*(f"{word} {{}}" for word in BEFORE_NOUNS), *(f"{{}} {words}" for words in AFTER_NOUNS))
    return replace(language, one=one, two=(*two * 4, *before), articles=(*ARTICLES, "the", "one", ""), more=more)


def drawn(language: Language, count: int, random_: random.Random) -> list[Caption]:
    """Captions of one garment, of two, and of no words."""
    found = [caption(language, random_, 1 if random_.random() < SINGLES else 2) for _ in range(count)]
    return [Caption("", ()) if random_.random() < SILENT else made for made in found]


def errors(hidden: Tensor, wanted: Wanted, canon: Canon) -> Tensor:
    """hidden [N, T, WIDTH] -> [2]: squared error relative to the rows' spread, and cross-entropy of telling the last
    row that is said of a garment from those of all kinds and places."""
    squared = (wanted.weights * (hidden - wanted.rows).square().mean(-1)).sum() / canon.spread
    here, table = wanted.ends >= 0, canon.ends.flatten(0, 1)
    alike = -SHARPNESS * torch.cdist(hidden[here], table).square() / (WIDTH * canon.spread)
    return torch.stack([squared, F.cross_entropy(alike, wanted.ends[here])])


def train(args: argparse.Namespace) -> dict[str, Adapted]:
    torch.manual_seed(args.seed)
    random_ = random.Random(args.seed)
    model, tokenizer = text_encoder(fetch(args.encoder))
    taught, language = canon(model, tokenizer), spoken(WIDER)
    adapted = adapt(model, args.rank, dropout=0.02)
    if args.start:
        for name, tensor in load_file(args.start).items():
            layer, half, _ = name.rsplit(".", 2)
            getattr(adapted[layer], {"lora_A": "down", "lora_B": "up"}[half]).data.copy_(tensor)
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, args.learning_rate, (0.9, 0.99), weight_decay=0.01)
    model.train()
    began, found, step, part = time.monotonic(), [], 0, 0.0
    while part < 1:
        rate = args.learning_rate * min(1, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * part))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        found.append(gradients(drawn(language, args.batch_size, random_), model, tokenizer, taught))
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step, seconds = step + 1, time.monotonic() - began
        part = seconds / (60 * args.minutes)
        if step % 50 == 0 or part >= 1:
            (squared, unlike), found = torch.stack(found).mean(0).tolist(), []
            print(f"step {step}: squared error {squared:.3f}, cross-entropy {unlike:.3f}, {seconds:.0f} s", flush=True)
    return adapted


def gradients(captions: list[Caption], model: Any, tokenizer: Any, taught: Canon) -> Tensor:
    """Adds them for a batch, in halves of like lengths. -> `errors`, without a graph."""
    ordered = sorted(captions, key=lambda each: len(each.text))
    halves, total = (ordered[: len(ordered) // 2], ordered[len(ordered) // 2 :]), torch.zeros(2)
    for half in halves:
        encoded, owners = tokens_of(tokenizer, half)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model(**encoded).last_hidden_state.float()
        both = errors(hidden, wanted(half, owners, taught), taught) / 2
        both.sum().backward()
        total += both.detach()
    return total


def write_lora(adapted: dict[str, Adapted], out: Path) -> None:
    """PEFT's names, float16; alpha is the rank."""
    tensors = {f"{name}.lora_A.weight": each.down for name, each in adapted.items()}
    tensors |= {f"{name}.lora_B.weight": each.up for name, each in adapted.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/fashion-minilm-lora.safetensors"))
    parser.add_argument("--encoder", type=Path, default=ENCODER, help="text_encoder/ and tokenizer/")
    parser.add_argument("--start", type=Path, default=None, help="a LoRA of this rank, to go on from")
    parser.add_argument("--minutes", type=float, default=18)
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_lora(train(args), args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
