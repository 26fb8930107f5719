"""The part of an error that leads to another class, for examples/train_text.py."""

from __future__ import annotations

from functools import cache

import torch
from fashion_mnist import CLASSES
from torch import Tensor

LOOK_ALIKE = ((0, 2, 3, 4, 6), (5, 7, 9))  # classes: what covers the upper body, shoes
ALIKE = 0.7  # share of those that look like the one said, of the classes that are held against it


def another(said: Tensor) -> Tensor:
    """A class, or none, that is not the one said: mostly one that looks like it."""
    return torch.multinomial(other_classes().to(said.device)[said.flatten()], 1).view_as(said)


@cache
def other_classes() -> Tensor:
    """[11, 11] probability of each class, or of none, to be held against each."""
    count = len(CLASSES) + 1
    table = (1 - torch.eye(count)) / (count - 1)
    for group in LOOK_ALIKE:
        for label in group:
            others = torch.tensor([other for other in group if other != label])
            table[label] *= 1 - ALIKE
            table[label, others] += ALIKE / len(others)
    return table


def confusion(error: Tensor, other: Tensor, bright: Tensor) -> Tensor:
    """How far the error [N, 1, H, W] leads to what another class would predict (other: less what is right): squared, 1
    where all the way, the mean over halves. Classes that look alike differ by little, which guidance makes
    large: the mean squared error says nearly nothing of it. bright [N, garments]: halves that are left out."""
    error, other = (torch.cat(each.chunk(bright.shape[1], dim=3)).flatten(1) for each in (error, other))
    size = other.square().sum(1)
    part = (error * other).sum(1) / (size + 0.1 * size.mean())
    return mean_where(part.square(), ~bright.T.flatten())


def mean_where(values: Tensor, kept: Tensor) -> Tensor:
    """The mean of those that are kept, 0 where none is."""
    return (values * kept).sum() / kept.sum().clamp(min=1)
