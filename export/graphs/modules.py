"""The graphs of a bundle as torch modules (docs/format.md).

`Conditioner` runs once per image, `Step` once per sampler step, `PixelDecoder` or `LatentDecoder` at the end. The
arithmetic of every sampler is in `Step.forward`; which sampler it is, is data.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..networks.dit import Network
from ..networks.vae import VaeDecoder

# No network that works puts out numbers above SANE. What does not work (NaN, infinity) is replaced by BROKEN, which a
# weight of 0 removes, as it could not remove a NaN (0 x NaN), and which any other weight leaves above LARGEST.
SANE, LARGEST, BROKEN = 1e15, 1e20, 1e30
SHORTEST = 1e-12  # length of a row that another is divided by


class Conditioner(nn.Module):
    """timestep [U] float32, label [U] int64 -> modulation [U, M] float32.

    One row more is computed than asked for, and dropped: libraries have another kernel for a product of one row, whose
    last bits are others, and a row must not depend on how many there are.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, timestep: Tensor, label: Tensor) -> Tensor:
        timestep, label = (torch.cat([rows, rows[:1]]) for rows in (timestep, label))
        return self.network.conditioner(timestep, label)[:-1]


class ToldConditioner(Conditioner):
    """The same, with what the network is told besides: config.told, [U] float32 each."""

    def forward(self, *given: Tensor) -> Tensor:  # type: ignore[override]
        timestep, label, *told = (torch.cat([rows, rows[:1]]) for rows in given)
        return self.network.conditioner(timestep, label, *told)[:-1]


class Step(nn.Module):
    """One sampler step, network included. B samples, K state slots, E network evaluations, U modulation rows.

    A sample whose own evaluations are not finite becomes NaN, whatever its clamp; no other sample sees it.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        state: Tensor,  # [B, K, C, H, W]; slot 0 is the network's input
        sample: Tensor,  # [E] int64: which sample an evaluation belongs to
        condition: Tensor,  # [E] int64: which row of modulation it uses
        modulation: Tensor,  # [U, M]
        combine: Tensor,  # [B, E, O]: guidance
        x0_from: Tensor,  # [B, 2]
        x0_bound: Tensor,  # [B]
        log_sigma: Tensor,  # [B, 2]
        mix: Tensor,  # [B, K, K + 2]: the solver
        noise: Tensor,  # [B, C, H, W]
    ) -> Tensor:  # next_state [B, K, C, H, W]
        x = state[:, 0]
        output = self.network.trunk(x.index_select(0, sample), modulation.index_select(0, condition))
        return next_state(output, x, state, Tables(combine, x0_from, x0_bound, log_sigma, mix), noise)


class Tables(NamedTuple):
    """What a program says of one step of each sample: inputs of step.onnx."""

    combine: Tensor
    x0_from: Tensor
    x0_bound: Tensor
    log_sigma: Tensor
    mix: Tensor


def renormalised(prediction: Tensor, output: Tensor, combine: Tensor) -> Tensor:
    """What guidance made, its rows as long as those of what it leads to (`cfg_normalization` of Lumina2Pipeline).

    prediction [B, O, H, W], output [E, O, H, W], combine [B, E, O], above 0 for what it leads to, else at most 0.
    """
    weight = combine.clamp(min=0)[..., None, None]
    towards = (weight * output).sum(dim=1) / weight.sum(dim=1).clamp(min=SHORTEST)
    lengths = (rows.square().sum(dim=3, keepdim=True).sqrt().clamp(min=SHORTEST) for rows in (towards, prediction))
    long, own = lengths
    return prediction * (long / own)


def next_state(
    output: Tensor, x: Tensor, state: Tensor, tables: Tables, noise: Tensor, renormalise: bool = False
) -> Tensor:
    """What every step does with its evaluations, whatever the network: guidance, x0, the solver's update.

    output [E, O, H, W]: what the network says; O is C, or 2C where it predicts the variance, too.
    x [B, C, H, W]: slot 0 of the state -> the next state [B, K, C, H, W].
    """
    combine, x0_from, x0_bound, log_sigma, mix = tables
    output = torch.where(output.abs() <= SANE, output, BROKEN)
    # Both contractions as a product and a sum: TensorRT makes one kernel of each with what lies around it, where an
    # einsum is a float32 GEMM between transposes (which GPUs before Ampere do not have in TensorRT-RTX).
    prediction = (combine[..., None, None] * output).sum(dim=1)
    if renormalise:
        prediction = renormalised(prediction, output, combine)

    def per_sample(column: Tensor) -> Tensor:
        return column[:, None, None, None]

    channels = x.shape[1]
    bound = per_sample(x0_bound)
    x0 = per_sample(x0_from[:, 0]) * x + per_sample(x0_from[:, 1]) * prediction[:, :channels]
    x0 = torch.minimum(torch.maximum(x0, -bound), bound)
    x0 = torch.where(prediction[:, :channels].abs() <= LARGEST, x0, torch.nan)
    log_scale = per_sample(log_sigma[:, 0])
    if output.shape[1] == 2 * channels:
        log_scale = log_scale + per_sample(log_sigma[:, 1]) * prediction[:, channels:]
    slots = torch.cat([state, x0[:, None], (torch.exp(log_scale) * noise)[:, None]], dim=1)
    return (mix[..., None, None, None] * slots[:, None]).sum(dim=2)


def uint8_image(picture: Tensor) -> Tensor:
    """[B, C, h, w] float32 in [-1, 1] -> [B, h, w, C] uint8, rounded as the reference's sample_ddp.py does."""
    return (127.5 * picture + 128.0).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)


class PixelDecoder(nn.Module):
    """For models that work on pixels."""

    def forward(self, latent: Tensor) -> Tensor:
        """latent [B, C, H, W] float32 -> image [B, H, W, C] uint8."""
        return uint8_image(latent)


class LatentDecoder(nn.Module):
    """For models that work on a VAE's latents; the latents' scaling and shift are undone inside `vae`."""

    def __init__(self, vae: VaeDecoder) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent: Tensor) -> Tensor:
        """latent [B, C, H, W] float32 -> image [B, H * factor, W * factor, 1 or 3] uint8."""
        return uint8_image(self.vae(latent))
