"""Parts that the networks of several families share; parameter names are diffusers'."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SINUSOID = 256  # width of the sinusoids that feed the embedders
RMS_EPS = 1e-6


class FamilyConfig:
    """What the descriptions of families that take prompts have in common; each is a dataclass with these fields."""

    sample_size: int  # H = W of the latents that it was trained on
    in_channels: int  # C
    out_channels: int  # O
    num_heads: int
    head_size: int

    @property
    def input_size(self) -> int:
        return self.sample_size

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.num_heads * self.head_size

    @property
    def learn_sigma(self) -> bool:
        return self.out_channels == 2 * self.in_channels


class PatchEmbed(nn.Module):
    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> tokens [N, S, D], row-major."""
        return self.proj(x).flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    """linear_1, an activation, linear_2."""

    def __init__(self, inputs: int, width: int, act: nn.Module, bias: bool = True) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(inputs, width, bias), nn.Linear(width, width, bias)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.act(self.linear_1(x)))


class Projection(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """hidden: numbers inside, four times the width where it is None."""

    def __init__(self, width: int, hidden: int | None = None) -> None:
        super().__init__()
        inner = 4 * width if hidden is None else hidden
        self.net = nn.ModuleList([Projection(width, inner), nn.Identity(), nn.Linear(inner, width)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class SwiGlu(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Modulated(nn.Module):
    """`linear`, of an adaptive norm: so many vectors of the width, which depend on time and prompt alone."""

    def __init__(self, width: int, vectors: int, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(width, vectors * width, bias)


class RmsNorm(nn.Module):
    """Over the last dimension: of each head's queries and keys, or of tokens."""

    def __init__(self, width: int, eps: float = RMS_EPS) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps) * self.weight


class RotaryAxes(nn.Module):
    """Cosines and sines of rotary positions along three axes or more: rows of pixels have places on the second, columns
    on the third, words on the first, or where there is one on the fourth."""

    def __init__(self, sizes: Sequence[int], theta: float) -> None:
        """sizes: numbers of a head that turn with each axis; d is their sum."""
        super().__init__()
        self.further = range(3, len(sizes))
        for axis, size in enumerate(sizes):
            exponent = torch.arange(0, size, 2, dtype=torch.float64, device="cpu") / size
            self.register_buffer(f"omega_{axis}", (1.0 / theta**exponent).float(), persistent=False)

    def grid(self, rows: Tensor, columns: Tensor) -> Tensor:
        """rows [h] and columns [w] float32, 0, 1, 2 ... of the tokens -> [h, w, d]: cosines, then sines."""
        h, w = rows.shape[0], columns.shape[0]
        down, across = rows[:, None] * self.omega_1[None], columns[:, None] * self.omega_2[None]
        still = torch.zeros_like(rows)[:, None, None] * self.omega_0[None, None]
        angles = [
            still.expand(-1, w, -1),
            down[:, None].expand(-1, w, -1),
            across[None].expand(h, -1, -1),
            *((rows[:, None, None] * 0 * self.get_buffer(f"omega_{axis}")).expand(-1, w, -1) for axis in self.further),
        ]
        angle = torch.cat(angles, dim=2)
        return torch.cat([angle.cos(), angle.sin()], dim=2)

    def line(self, places: Tensor) -> Tensor:
        """places [P, T] float32 on the first axis -> [P, T, d]."""
        along, still = places[..., None] * self.omega_0, torch.zeros_like(places)[..., None]
        angle = torch.cat([along, still * self.omega_1, still * self.omega_2], dim=2)
        return torch.cat([angle.cos(), angle.sin()], dim=2)


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


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """q [N, heads, S, d], k and v [N, heads, T, d] -> [N, S, heads d]. bias [N, T] is added to the scores."""
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    scores = scores if bias is None else scores + bias[:, None, None]
    return (torch.softmax(scores, dim=-1) @ v).transpose(1, 2).flatten(2)


def turned(x: Tensor, position: Tensor) -> Tensor:
    """Rotary positions: x [N, heads, S, d] in pairs, position [S, d] or [N, 1, S, d]: cosines, then sines -> like x."""
    half = x.shape[-1] // 2
    cos, sin = position[..., :half], position[..., half:]
    real, imaginary = x.unflatten(3, (half, 2)).unbind(-1)
    return torch.stack([real * cos - imaginary * sin, imaginary * cos + real * sin], dim=-1).flatten(3)


def vectors_of(modulation: Tensor, first: int, count: int, width: int) -> tuple[Tensor, ...]:
    """modulation [N, M] -> `count` of its vectors [N, 1, D], from number `first` on."""
    part = modulation[:, first * width : (first + count) * width]
    return part.unflatten(1, (count, width))[:, :, None].unbind(1)


def modulated(norm: nn.Module, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return norm(x) * (1 + scale) + shift


def fed(norm: nn.Module, feed: nn.Module, x: Tensor, attended: Tensor, vectors: tuple[Tensor, ...]) -> Tensor:
    """What follows attention in a block of six vectors: its gate and sum, then the gated MLP."""
    _, _, gate, shift_mlp, scale_mlp, gate_mlp = vectors
    x = x + gate * attended
    return x + gate_mlp * feed(modulated(norm, x, shift_mlp, scale_mlp))


def packed(x: Tensor, patch: int, h: int, w: int) -> Tensor:
    """[N, C, p h, p w] -> [N, h w, C p p] (`nchpwq -> nhwcpq`)."""
    return x.unflatten(3, (w, patch)).unflatten(2, (h, patch)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def patchified(x: Tensor, patch: int, h: int, w: int) -> Tensor:
    """[N, C, p h, p w] -> [N, h w, p * p * C] (`nchpwq -> nhwpqc`)."""
    return x.unflatten(3, (w, patch)).unflatten(2, (h, patch)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchified(tokens: Tensor, patch: int, h: int, w: int) -> Tensor:
    """[N, h w, p * p * O] -> [N, O, p h, p w] (`nhwpqc -> nchpwq`)."""
    grid = tokens.unflatten(2, (patch, patch, -1)).unflatten(1, (h, w))
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
