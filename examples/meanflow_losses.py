"""What `train_meanflow.py` minimises: the MeanFlow identity, and a relativistic adversary with noise on its images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from train import TIMESTEPS, Diffusion

from ditedge.export.networks.dit import DiT
from ditedge.export.networks.meanflow import MeanFlow

P_MEAN, P_STD = -0.4, 1.0  # of the logit of t and r, as in the paper
AT_NOISE, AT_DATA = 0.2, 0.3  # shares of the intervals that begin at t = 1, and that end at r = 0
SMALLEST_TIME = 0.01  # the demo model's first timestep
LARGEST_TIME = 0.985  # above, the image is its epsilon's error divided by next to nothing
ADVERSARY_NOISE = 0.1  # standard deviation of what the penalty adds
PENALTY = 0.05  # times the squared change over the variance of that noise: R1's and R2's gamma / 2


class Teacher:
    """The demo model as a velocity field along x = (1 - t) x0 + t eps."""

    def __init__(self, model: DiT, device: str) -> None:
        self.model = model.requires_grad_(False).eval()
        diffusion = Diffusion(device)
        self.log_ratio = (diffusion.noise / diffusion.signal).log().flatten()  # rising

    def timestep(self, t: Tensor) -> Tensor:
        """t [N] in (0, 1) -> where the model has that ratio of noise to signal, 0 .. 999, not whole."""
        ratio = torch.logit(t)
        above = torch.searchsorted(self.log_ratio, ratio).clamp(1, TIMESTEPS - 1)
        low, high = self.log_ratio[above - 1], self.log_ratio[above]
        return (above - 1 + (ratio - low) / (high - low)).clamp(0, TIMESTEPS - 1)

    def images(self, x: Tensor, t: Tensor, label: Tensor, guidance: Tensor) -> Tensor:
        """The x0 that it takes x [N, C, H, W] at t [N] for, in [-1, 1]; guidance [N]."""
        t = t.clamp(SMALLEST_TIME, LARGEST_TIME)
        time, scale = column(t), (column(1 - t).square() + column(t).square()).sqrt()
        null = torch.full_like(label, self.model.config.num_classes)
        doubled = [torch.cat([v, v]) for v in (x / scale, self.timestep(t))]
        output = self.model(*doubled, torch.cat([label, null]))[:, : x.shape[1]].float()
        conditional, unconditional = output.chunk(2)
        epsilon = unconditional + column(guidance) * (conditional - unconditional)
        return ((x - time * epsilon) / (1 - time)).clamp(-1, 1)

    def velocity(self, x: Tensor, t: Tensor, label: Tensor, guidance: Tensor) -> Tensor:
        return (x - self.images(x, t, label, guidance)) / column(t)


def begin(model: MeanFlow, known: DiT, device: str) -> None:
    """Gives the student the demo model's weights; its timestep embedder is fitted to say of t what the model's says of
    the timestep with as much noise, its interval is not heard until training says so.
    """
    rows = model.config.patch_size**2 * 2  # of the last layer: each pixel's epsilon and variance
    state = {name: value for name, value in known.state_dict().items() if not name.startswith("t_embedder.")}
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        state[name] = state[name][0:rows:2]
    model.load_state_dict(state, strict=False)
    nn.init.zeros_(model.h_embedder.mlp[2].weight)
    nn.init.zeros_(model.h_embedder.mlp[2].bias)
    teacher = Teacher(known, device)
    fitted = torch.optim.Adam(model.t_embedder.parameters(), lr=2e-3)
    for _ in range(1000):
        t = torch.rand(256, device=device)
        with torch.no_grad():
            said = known.t_embedder(teacher.timestep(t.clamp(1e-3, 1 - 1e-3)))
        error = (model.t_embedder(t) - said).square().mean()
        fitted.zero_grad()
        error.backward()
        fitted.step()
    print(f"timestep embedder: squared error {error.item():.4f} of {said.square().mean().item():.4f}")
    known.requires_grad_(True)
    known.pos_embed.requires_grad_(False)


def tokens_of(model: DiT, x: Tensor, timestep: Tensor, label: Tensor) -> Iterator[Tensor]:
    """x [N, C, H, W], timestep and label [N] -> the tokens [N, T, D] after each of the demo model's blocks in turn."""
    condition = model.t_embedder(timestep) + model.y_embedder(label)
    tokens = model.x_embedder(x) + model.pos_embed
    for block in model.blocks:
        tokens = block(tokens, block.adaLN_modulation(condition))
        yield tokens


class Adversary(nn.Module):
    """The demo model's blocks, and what their tokens say for an image: [N, C, H, W] with noise, [N], [N] -> [N]."""

    def __init__(self, model: DiT) -> None:
        super().__init__()
        self.model = model
        del model.final_layer
        width = model.config.hidden_size
        norm = [nn.LayerNorm(width) for _ in model.blocks]
        self.heads = nn.ModuleList(nn.Sequential(n, nn.Linear(width, 1)) for n in norm)

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        heard = zip(self.heads, tokens_of(self.model, x, timestep, label), strict=True)
        return torch.stack([head(tokens).mean(dim=(1, 2)) for head, tokens in heard]).mean(dim=0).float()


def column(values: Tensor) -> Tensor:
    """[N] -> [N, 1, 1, 1]."""
    return values[:, None, None, None]


def sample_times(count: int, unequal: int, device: str) -> tuple[Tensor, Tensor]:
    """t and r [count], the first `unequal` with r < t: logit-normal, some from pure noise, some to the image."""
    pair = torch.sigmoid(P_MEAN + P_STD * torch.randn(2, count, device=device))
    t, r = pair.max(dim=0).values, pair.min(dim=0).values
    t = torch.where(torch.rand(count, device=device) < AT_NOISE, 1.0, t)
    r = torch.where(torch.rand(count, device=device) < AT_DATA, 0.0, r)
    t = t.clamp(min=2 * SMALLEST_TIME)
    return t, torch.where(torch.arange(count, device=device) < unequal, torch.minimum(r, t), t)


@dataclass(frozen=True)
class Guided:
    """How guidance is folded in: at times in the interval, v = scale v(label) + (1 - scale) v(no label)."""

    scale: float
    interval: tuple[float, float]
    kept: float = 0.5  # kappa: how much of the scale is by the student's own guided velocity, which varies less
    dropped: float = 0.1  # labels

    def at(self, t: Tensor) -> Tensor:
        return torch.where((t > self.interval[0]) & (t < self.interval[1]), self.scale, 1.0)


@torch.no_grad()
def velocities(
    model: MeanFlow, teacher: Teacher | None, guided: Guided, x: Tensor, v: Tensor, t: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What u is to be the average of, the velocity along which it is derived [N, C, H, W] each, and the labels."""
    if teacher is not None:
        both = teacher.velocity(x, t, y, guided.at(t))
        return both, both, y
    null, zero = torch.full_like(y, model.config.num_classes), torch.zeros_like(t)
    dropped = torch.rand_like(t) < guided.dropped
    doubled = [torch.cat([value, value]) for value in (x, t, zero)]
    own, unconditional = model(doubled[0], doubled[1], torch.cat([y, null]), doubled[2]).float().chunk(2)
    kept = torch.where(guided.at(t) > 1, guided.kept, 0.0)
    scale = column(guided.at(t) * (1 - kept))
    mixed = scale * v + column(kept) * own + (1 - scale - column(kept)) * unconditional
    target = torch.where(column(dropped), v, mixed)
    return target, torch.where(column(dropped), unconditional, own), torch.where(dropped, null, y)


def mean_flow_loss(
    model: MeanFlow, teacher: Teacher | None, guided: Guided, x0: Tensor, y: Tensor, equal: float
) -> tuple[Tensor, Tensor]:
    """Images [N, C, H, W], labels [N] -> what is minimised (weighted per image, power 1), mean squared error."""
    unequal = round(len(x0) * (1 - equal))
    t, r = sample_times(len(x0), unequal, str(x0.device))
    noise = torch.randn_like(x0)
    x = (1 - column(t)) * x0 + column(t) * noise
    target, along, y = velocities(model, teacher, guided, x, noise - x0, t, y)
    u = model(x, t, y, t - r).float()
    part = slice(unequal)
    change = derivative(model, x[part], t[part], (t - r)[part], y[part], along[part])
    target = torch.cat([target[part] - column((t - r)[part]) * change, target[unequal:]])
    error = (u - target).square()
    each = error.sum(dim=(1, 2, 3))
    return (each / (each.detach() + 0.01)).mean(), error.detach().mean()


@torch.no_grad()
def derivative(model: MeanFlow, x: Tensor, t: Tensor, interval: Tensor, y: Tensor, along: Tensor) -> Tensor:
    """du/dt where x moves with the velocity `along` and r stands still, [N, C, H, W] float32."""
    one = torch.ones_like(t)
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward derivative
        _, change = torch.func.jvp(lambda x, t, h: model(x, t, y, h), (x, t, interval), (along, one, one))
    return change.float()


def one_evaluation(model: MeanFlow, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """The image that x [N, C, H, W] at t [N] becomes in a single step."""
    return x - column(t) * model(x, t, y, t).float()


def noised(diffusion: Diffusion, image: Tensor) -> tuple[Tensor, Tensor]:
    """image [N, C, H, W] as the adversary sees it, most often with little noise, and the timesteps [N] float32."""
    index = (torch.rand(len(image), device=image.device).square() * 0.5 * TIMESTEPS).long()
    return diffusion.add_noise(image, torch.randn_like(image), index), index.float()


def generator_loss(
    model: MeanFlow, adversary: Adversary, diffusion: Diffusion, x0: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """How far real images x0 are above the student's in the adversary's eyes, and the student's images, detached."""
    pure, between = torch.rand(2, len(x0), device=x0.device)
    t = torch.where(pure < 0.6, 1.0, 0.3 + 0.7 * between)
    x = (1 - column(t)) * x0 + column(t) * torch.randn_like(x0)
    image = one_evaluation(model, x, t, y)
    with torch.no_grad():
        real = adversary(*noised(diffusion, x0), y)
    return F.softplus(real - adversary(*noised(diffusion, image), y)).mean(), image.detach()


def discriminator_loss(adversary: Adversary, diffusion: Diffusion, real: Tensor, fake: Tensor, y: Tensor) -> Tensor:
    """Relativistic: real above fake of the same class; and neither may change much under a little noise."""
    seen, timestep = noised(diffusion, torch.cat([real, fake]))
    labels = torch.cat([y, y])
    shaken = seen + ADVERSARY_NOISE * torch.randn_like(seen)
    said, said_shaken = adversary(torch.cat([seen, shaken]), timestep.repeat(2), labels.repeat(2)).chunk(2)
    of_real, of_fake = said.chunk(2)
    return F.softplus(of_fake - of_real).mean() + PENALTY / ADVERSARY_NOISE**2 * (said - said_shaken).square().mean()
