"""Pictures that examples/polish_text.py is drawing: what their captions say, and at which step each of them is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from captioned_images import ROW_NOISE, TOKEN_DROPOUT
from fashion_mnist import IMAGE_SIZE, load
from text_captions import Garment, brightness_groups, brightness_of
from torch import Tensor
from train import Diffusion

DRAWN = (2.0, 0.5, 4.0, 1.0, 2.0, 0.7, 2.0, 0.5, 1.5, 0.5)  # of each class: those that fail are drawn more often
FIRST, STRIDE, LAST = (790, 870), (50, 111), 20  # timesteps: where pictures begin, how far a step goes, where they end
SIDES = {None: 0, "dark": -1, "bright": 1}


@dataclass(frozen=True)
class Captions:
    """M captions of one kind, one garment or two, and that of no words."""

    rows: Tensor  # [M + 1, T, Dh] float16; the last has no words
    weaker: Tensor  # the same of a text encoder that knows the captions less well
    lengths: Tensor  # [M + 1] int64
    labels: Tensor  # [M, garments] int64
    sides: Tensor  # [M, garments]: -1 dark, 1 bright, 0 nothing said
    limits: Tensor  # [M, garments] float32: the brightest that is dark, the darkest that is bright

    @property
    def weights(self) -> Tensor:
        return torch.tensor(DRAWN)[self.labels].mean(1)


def read_captions(file: Path, weaker: Path, data: Path | None) -> dict[int, Captions]:
    """files: of `write_captions`, of the same captions -> by how many garments are in them."""
    saved, other = (torch.load(each, weights_only=True) for each in (file, weaker))
    if saved["captions"] != other["captions"]:
        raise SystemExit(f"{file} and {weaker} are not of the same captions")
    limits = brightness_limits(data)
    said = [[Garment(*each) for each in garments] for _, garments in saved["captions"]]
    found = {}
    for kind in (1, 2):
        chosen = [i for i, garments in enumerate(said) if len(garments) == kind]
        some = [said[i] for i in chosen]
        found[kind] = Captions(
            saved["rows"][[*chosen, -1]],
            other["rows"][[*chosen, -1]],
            saved["lengths"][[*chosen, -1]],
            torch.tensor([[garment.label for garment in each] for each in some]),
            torch.tensor([[SIDES[garment.brightness] for garment in each] for each in some]),
            torch.tensor([[limits.get(garment, 0.0) for garment in each] for each in some]),
        )
    return found


def brightness_limits(data: Path | None) -> dict[Garment, float]:
    images, labels = load("train", data)
    brightness = brightness_of(images[:, 0].numpy())
    groups = brightness_groups(images[:, 0].numpy(), labels.numpy()).items()
    told = {garment: brightness[of] for garment, of in groups if garment.brightness}
    return {garment: float(of.max() if garment.brightness == "dark" else of.min()) for garment, of in told.items()}


class Pictures:
    """N pictures that are being drawn."""

    def __init__(self, count: int, kind: int, captions: Captions) -> None:
        self.kind, self.captions = kind, captions
        self.x, self.t = torch.zeros(count, 1, IMAGE_SIZE, kind * IMAGE_SIZE), torch.zeros(count, dtype=torch.int64)
        self.chosen, self.weakness = torch.zeros(count, dtype=torch.int64), torch.zeros(count, 1, 1)
        self.begin(torch.ones(count, dtype=torch.bool))
        self.t = torch.randint(300, FIRST[1], (count,))  # not all at one step

    def begin(self, new: Tensor) -> None:
        """Noise and another caption for those that are new [N] bool."""
        count = int(new.sum())
        if count:
            self.x[new], self.t[new] = torch.randn(count, *self.x.shape[1:]), torch.randint(*FIRST, (count,))
            self.chosen[new] = torch.multinomial(self.captions.weights, count, replacement=True)
            self.weakness[new] = torch.rand(count, 1, 1) * (torch.rand(count, 1, 1) < 0.5)

    def prompts(self, silent: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [N, T, Dh] float32 with noise on them, mask [N, T]; of no words where silent [N] bool."""
        number = self.chosen.masked_fill(silent, len(self.captions.rows) - 1)
        lengths = self.captions.lengths[number]
        rows, weaker = (of[number, : int(lengths.max())].float() for of in (self.captions.rows, self.captions.weaker))
        hidden = rows + self.weakness * (weaker - rows)
        places = torch.arange(hidden.shape[1])
        kept = (torch.rand(hidden.shape[:2]) >= TOKEN_DROPOUT) | (places == 0)
        hidden = hidden + ROW_NOISE * hidden.std() * torch.randn_like(hidden)
        return hidden, ((places < lengths[:, None]) & kept).long()

    def no_words(self) -> tuple[Tensor, Tensor]:
        """The rows and the mask of the caption of no words, for each picture."""
        length, count = int(self.captions.lengths[-1]), len(self.x)
        hidden = self.captions.rows[-1, :length].float().expand(count, -1, -1)
        return hidden, torch.ones(count, length, dtype=torch.int64)

    def go_on(self, x0: Tensor, noise: Tensor, diffusion: Diffusion) -> None:
        """A step of DDIM of random length; what is done makes room for another picture."""
        t = self.t - torch.randint(*STRIDE, self.t.shape)
        self.t = t.clamp(min=0)
        self.x = diffusion.add_noise(x0, noise, self.t)
        self.begin(t < LAST)


def stacked(pictures: Tensor, kind: int) -> Tensor:
    """[N, 1, H, kind W] -> [kind N, 1, H, W]: all first halves, then all second ones."""
    return torch.cat(pictures.chunk(kind, dim=3))


def beside(halves: Tensor, kind: int) -> Tensor:
    """What `stacked` was given."""
    return torch.cat(halves.chunk(kind), dim=3)
