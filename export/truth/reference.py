"""A plain PyTorch sampler: what facebookresearch/DiT computes, step by step, without tables or graphs.

It records the golden trajectories of a bundle. It shares no formula with `runtime.programs` on purpose: an error in
either shows as a difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...runtime.samplers.flow_settings import FlowInfo
from ...runtime.samplers.schedule import ScheduleInfo
from ..networks.dit import Network


def guided_output(
    model: Network, x: Tensor, t: float, y: Tensor, guidance: float, guided_channels: int, interval: float = 0.0
) -> Tensor:
    """`forward_with_cfg` of models.py: guidance on the first `guided_channels` channels, the rest conditional.

    interval: how far the step goes, of a network that is told. One that is told its guidance is evaluated once.
    """
    numbers = {"interval": interval, "guidance": guidance}
    told = [torch.full((len(x),), numbers[name]) for name in model.config.told]
    timestep = torch.full((len(x),), float(t))
    conditional = model.trunk(x, model.conditioner(timestep, y, *told))
    if guidance == 1.0 or "guidance" in model.config.told:
        return conditional
    null = torch.full_like(y, model.config.num_classes)
    unconditional = model.trunk(x, model.conditioner(timestep, null, *told))
    return guided(conditional, unconditional, guidance, guided_channels)


def guided(conditional: Tensor, away: Tensor, guidance: float, channels: int) -> Tensor:
    """Classifier-free guidance on the first `channels` channels, the rest conditional."""
    output, part = conditional.clone(), slice(0, channels)
    output[:, part] = away[:, part] + guidance * (conditional[:, part] - away[:, part])
    return output


def trained_alphas_cumprod(schedule: ScheduleInfo) -> Tensor:
    """abar_t of training [T] float64: `get_named_beta_schedule` of gaussian_diffusion.py, and its relatives."""
    steps, start, end = schedule.steps, schedule.beta_start or 0.0, schedule.beta_end or 0.0
    if schedule.kind == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float64)
    elif schedule.kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    elif schedule.kind == "cosine":
        abar = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        betas = torch.tensor([min(1 - abar[i + 1] / abar[i], 0.999) for i in range(steps)], dtype=torch.float64)
    else:
        betas = torch.tensor(schedule.betas, dtype=torch.float64)
    abars = torch.cumprod(1 - betas, 0)
    if schedule.zero_terminal_snr:  # Lin et al. 2024, algorithm 1
        root = abars.sqrt()
        abars = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return abars


@torch.no_grad()
def reference_trajectory(
    network: Callable[[Tensor, int], Tensor],
    z: Tensor,
    noise: Tensor,
    timesteps: list[int],
    sampler: str,
    learn_sigma: bool,
    prediction: str,
    alphas_cumprod: Tensor,
) -> Tensor:
    """DDPM (learned or fixed-large variance) or DDIM (eta 0) over `timesteps` (falling).

    network(x, t) -> [B, O, H, W]; z [B, C, H, W]; noise [N, B, C, H, W]; alphas_cumprod [T] float64 -> x after each
    step [N, B, C, H, W]. `p_sample` and `ddim_sample` of diffusion/gaussian_diffusion.py with `clip_denoised=False`.
    """
    abars = [float(alphas_cumprod[t]) for t in timesteps] + [1.0]
    x, trajectory = z, []
    for i, t in enumerate(timesteps):
        output = network(x, t)
        channels = x.shape[1]
        predicted = output[:, :channels]
        abar, previous = torch.tensor(abars[i], dtype=torch.float64), torch.tensor(abars[i + 1], dtype=torch.float64)
        beta = 1 - abar / previous
        if prediction == "x0":
            x0 = predicted
        elif prediction == "v":  # v = sqrt(abar) epsilon - sqrt(1 - abar) x0 (Salimans & Ho 2022, appendix D)
            x0 = abar.sqrt().float() * x - (1 - abar).sqrt().float() * predicted
        else:
            x0 = (1 / abar).sqrt().float() * x - (1 / abar - 1).sqrt().float() * predicted
        last = i == len(timesteps) - 1
        if sampler == "ddim":
            epsilon = (x - abar.sqrt().float() * x0) / (1 - abar).sqrt().float()  # finite at zero terminal SNR, too
            x = x0 * previous.sqrt().float() + (1 - previous).sqrt().float() * epsilon
        else:
            mean = (beta * previous.sqrt() / (1 - abar)).float() * x0
            mean = mean + ((1 - previous) * (1 - beta).sqrt() / (1 - abar)).float() * x
            if not last:
                log_variance = beta.log().float()
                if learn_sigma:
                    low = (beta * (1 - previous) / (1 - abar)).log().float()
                    fraction = (output[:, channels:] + 1) / 2
                    log_variance = fraction * log_variance + (1 - fraction) * low
                mean = mean + (0.5 * log_variance).exp() * noise[i]
            x = mean
        trajectory.append(x)
    return torch.stack(trajectory)


@torch.no_grad()
def flow_trajectory(network: Callable[[Tensor, float], Tensor], z: Tensor, steps: int, to_data: bool = True) -> Tensor:
    """Euler's method on SiT's ODE dx/dt = velocity from t = 0 (noise) to t = 1 (data) in equal steps; with
    to_data False on REPA's, from t = 1 (noise) to t = 0 (`euler_sampler` of its samplers.py).

    network(x, t) -> [B, C, H, W] velocity; z [B, C, H, W] -> x after each step [N, B, C, H, W]. SiT's
    transport/integrators.py `ode` with method "euler" (torchdiffeq) and a linear path.
    """
    x, trajectory = z, []
    for i in range(steps):
        change = network(x, i / steps if to_data else 1 - i / steps)[:, : z.shape[1]] / steps
        x = x + change if to_data else x - change
        trajectory.append(x)
    return torch.stack(trajectory)


@torch.no_grad()
def mean_flow_trajectory(network: Callable[[Tensor, float, float], Tensor], z: Tensor, steps: int) -> Tensor:
    """`solver_step` of Gsunshine/meanflow's meanflow.py in equal steps from t = 1 (noise) to t = 0.

    network(x, t, t - r) -> average velocity [B, C, H, W]; z [B, C, H, W] -> x after each step [N, B, C, H, W].
    """
    times = [1 - i / steps for i in range(steps + 1)]
    x, trajectory = z, []
    for t, r in zip(times, times[1:], strict=False):
        x = x - (t - r) * network(x, t, t - r)
        trajectory.append(x)
    return torch.stack(trajectory)


def flow_sigmas(flow: FlowInfo, steps: int, tokens: int) -> list[float]:
    """Where diffusers' pipelines of flows evaluate: `set_timesteps` of scheduling_flow_match_euler_discrete.py, with
    the sigmas that FluxPipeline gives it ("even") or none ("trained"), in float64."""

    def shift(sigma: float) -> float:
        if flow.by_size is None:
            return flow.shift * sigma / (1 + (flow.shift - 1) * sigma)
        size = flow.by_size
        slope = (size.most_mu - size.base_mu) / (size.most_tokens - size.base_tokens)
        mu = slope * tokens + size.base_mu - slope * size.base_tokens
        if size.few is not None and tokens <= size.most_tokens:
            few = size.few
            slope = (few.most_mu - few.base_mu) / (size.most_tokens - size.base_tokens)
            low = slope * tokens + few.base_mu - slope * size.base_tokens
            mu = low + (mu - low) * (steps - few.steps) / (few.most_steps - few.steps)
        grown = math.exp(mu) if size.kind == "exponential" else mu
        return grown / (grown + 1 / sigma - 1)

    last = 1 / steps
    if flow.spacing == "trained":
        last = 1 / flow.trained if flow.by_size is not None else shift(1 / flow.trained)
    return [shift(1 - (1 - last) * i / max(steps - 1, 1)) for i in range(steps)]


@torch.no_grad()
def sigma_trajectory(
    network: Callable[[Tensor, float], Tensor], z: Tensor, sigmas: list[float], scale: float
) -> Tensor:
    """Euler's method along sigma, from sigmas[0] to 0; network(x, scale sigma) is noise - data.

    z [B, C, H, W] -> x after each step [N, B, C, H, W]: `step` of scheduling_flow_match_euler_discrete.py.
    """
    x, trajectory = z, []
    for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        x = x + (following - sigma) * network(x, scale * sigma)
        trajectory.append(x)
    return torch.stack(trajectory)


@torch.no_grad()
def edm_trajectory(network: Callable[[Tensor, float], Tensor], z: Tensor, steps: int) -> Tensor:
    """Euler's method on Karras et al. 2022, algorithm 1 without its correction, with the preconditioning of table 1.

    network(c_in x, c_noise) -> F [B, C, H, W]; z [B, C, H, W] unit noise -> c_in x after each step, the last one x,
    [N, B, C, H, W]. `edm_sampler` of NVlabs/edm's generate.py and `EDMPrecond` of training/networks.py.
    """
    ramp = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    sigmas = [*((80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7).tolist(), 0.0]
    x, trajectory = z.double() * sigmas[0], []
    for sigma, after in zip(sigmas, sigmas[1:], strict=False):
        root = math.sqrt(sigma**2 + 0.25)
        output = network((x / root).float(), math.log(sigma) / 4).double()
        denoised = 0.25 / root**2 * x + 0.5 * sigma / root * output[:, : z.shape[1]]
        x = x + (after - sigma) * (x - denoised) / sigma
        trajectory.append(x / math.sqrt(after**2 + 0.25) if after else x)
    return torch.stack(trajectory).float()
