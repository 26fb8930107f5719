"""Parts that the networks of several families share; parameter names are diffusers'."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SINUSOID = 256  # width of the sinusoids that feed the embedders
RMS_EPS = 1e-6


class Mlp(nn.Module):
    """linear_1, an activation, linear_2."""

    def __init__(self, inputs: int, width: int, act: nn.Module) -> None:
        super().__init__()
        self.linear_1, self.linear_2, self.act = nn.Linear(inputs, width), nn.Linear(width, width), act

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.act(self.linear_1(x)))


class Projection(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([Projection(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class Modulated(nn.Module):
    """`linear`, of an adaptive norm: so many vectors of the width, which depend on time and prompt alone."""

    def __init__(self, width: int, vectors: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, vectors * width)


class RmsNorm(nn.Module):
    """Over the last dimension: of each head's queries and keys."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + RMS_EPS) * self.weight


def frequencies() -> Tensor:
    """[SINUSOID / 2] float32: a constant of the graph, made on the CPU also when the network is built on "meta"."""
    exponent = -math.log(10000) * torch.arange(SINUSOID // 2, dtype=torch.float32, device="cpu")
    return torch.exp(exponent / (SINUSOID // 2))


def sinusoid(value: Tensor, frequency: Tensor) -> Tensor:
    """value [U] -> [U, SINUSOID]: cosines first."""
    angle = value[:, None] * frequency[None]
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def heads_of(x: Tensor, heads: int) -> Tensor:
    """[N, S, D] -> [N, heads, S, D / heads]."""
    return x.unflatten(2, (heads, x.shape[-1] // heads)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[N, heads, S, d] each -> [N, S, heads d]."""
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    return (torch.softmax(scores, dim=-1) @ v).transpose(1, 2).flatten(2)


def vectors_of(modulation: Tensor, first: int, count: int, width: int) -> tuple[Tensor, ...]:
    """modulation [N, M] -> `count` of its vectors [N, 1, D], from number `first` on."""
    part = modulation[:, first * width : (first + count) * width]
    return part.unflatten(1, (count, width))[:, :, None].unbind(1)


def modulated(norm: nn.Module, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return norm(x) * (1 + scale) + shift
