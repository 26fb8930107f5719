"""Golden trajectories of a model that takes prompts: random rows stand for what a text encoder says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...runtime.bundle.manifest import GoldenInfo, ModelInfo
from ...runtime.files import write_tensors
from ...runtime.loop.noise import SeededNoise
from ...runtime.report import Report
from ...runtime.samplers.schedule import ScheduleInfo, respaced_timesteps
from ..networks.pixart import PixArt
from ..sources.shapes import LATENT_FACTOR
from .golden import GOLDEN_GUIDANCE, GOLDEN_TOLERANCE
from .programs import golden_steps
from .reference import guided, reference_trajectory, trained_alphas_cumprod

LENGTHS = (5, 9, 1)  # tokens: of each image's prompt, and of what they are guided away from


def write_golden_prompts(
    model: PixArt, info: ModelInfo, schedule: ScheduleInfo, folder: Path, report: Report
) -> list[GoldenInfo]:
    """Trajectories of the plain PyTorch sampler at the size of training: DDPM guided, DDIM not."""
    (folder / "golden").mkdir()
    steps, images = golden_steps(info), 1 if info.is_large else 2
    lengths = [*LENGTHS[:images], LENGTHS[-1]]
    source = SeededNoise(list(range(images)), info.latent_shape)
    z = torch.from_numpy(source.initial())
    noise = torch.from_numpy(np.stack([source.step(i) for i in range(steps)]))
    hidden = torch.randn(images + 1, max(lengths), model.config.caption_channels, generator=_generator())
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    hidden, golden = hidden * mask[..., None], []
    timesteps = respaced_timesteps(str(steps), schedule.steps).tolist()
    for run, (sampler, guidance) in enumerate({"ddpm": GOLDEN_GUIDANCE, "ddim": 1.0}.items()):

        def network(x: Tensor, t: float, run: int = run, guidance: float = guidance) -> Tensor:
            report("recording golden trajectories with PyTorch", run * steps + timesteps.index(int(t)) + 1, 2 * steps)
            return _guided(model, x, t, hidden, mask, guidance)

        alphas = trained_alphas_cumprod(schedule)
        x = reference_trajectory(network, z, noise, timesteps, sampler, info.learned_variance, info.prediction, alphas)
        file = f"golden/{sampler}-{steps}.safetensors"
        tensors = {"z": z, "noise": noise, "hidden": hidden, "lengths": torch.tensor(lengths), "x": x}
        write_tensors(folder / file, {name: tensor.numpy() for name, tensor in tensors.items()})
        program = f"{sampler}-{steps}"
        golden.append(GoldenInfo(file=file, program=program, guidance=guidance, tolerance=GOLDEN_TOLERANCE))
    return golden


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def _guided(model: PixArt, x: Tensor, t: float, hidden: Tensor, mask: Tensor, guidance: float) -> Tensor:
    """Guidance in the first C channels, the rest conditional. hidden [B + 1, T, Dh]: the last is guided away from."""
    images, channels = len(x), x.shape[1]
    conditional = _network(model, x, t, hidden[:images], mask[:images])
    if guidance == 1.0:
        return conditional
    away = _network(model, x, t, hidden[-1:].expand(images, -1, -1), mask[-1:].expand(images, -1))
    return guided(conditional, away, guidance, channels)


def _network(model: PixArt, x: Tensor, t: float, hidden: Tensor, mask: Tensor) -> Tensor:
    patch, told = model.config.patch_size, ()
    if model.config.told_size:
        told = tuple(torch.full((len(x),), float(LATENT_FACTOR * side)) for side in x.shape[2:])
    context, bias = model.context(hidden, mask)
    position = model.position(*(torch.arange(float(side // patch)) for side in x.shape[2:]))
    modulation = model.conditioner(torch.full((len(x),), float(t)), *told)
    return model.trunk(x, modulation, context, bias, torch.arange(len(x)), position)
