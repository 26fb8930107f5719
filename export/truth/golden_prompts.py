"""Golden trajectories of a model that takes prompts: random rows stand for what text encoders say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...runtime.bundle.manifest import GoldenInfo, ModelInfo
from ...runtime.files import write_tensors
from ...runtime.loop.noise import SeededNoise
from ...runtime.report import Report
from ...runtime.samplers.schedule import respaced_timesteps
from ..networks.interface import Shape
from ..sources.prompt_checkpoint import Process, PromptCheckpoint
from .golden import GOLDEN_GUIDANCE, GOLDEN_TOLERANCE
from .reference import flow_sigmas, guided, reference_trajectory, sigma_trajectory, trained_alphas_cumprod

LENGTHS = (5, 9, 1)  # tokens: of each image's prompt, and of what they are guided away from


@dataclass(frozen=True)
class _Prompts:
    """Random prompts. rows, masks: by the names that `context` reads them by, [B + 1, ...]; the last is guided away
    from; lengths [B + 1]."""

    lengths: Tensor
    rows: dict[str, Tensor]
    masks: dict[str, Tensor]

    def at(self, part: slice) -> dict[str, Tensor]:
        return {name: values[part] for name, values in (self.rows | self.masks).items()}


def write_golden_prompts(
    model: Any,
    info: ModelInfo,
    checkpoint: PromptCheckpoint,
    factor: int,
    folder: Path,
    steps: int,
    report: Report,
) -> list[GoldenInfo]:
    """Trajectories of the plain PyTorch sampler at the size of training: DDPM guided and DDIM not; flows both ways.

    factor: pixels of a picture per number of a latent, along a side.
    """
    (folder / "golden").mkdir()
    images, process = 1 if info.is_large else 2, checkpoint.process
    prompts = _prompts(checkpoint, images)
    source = SeededNoise(list(range(images)), info.latent_shape)
    z = torch.from_numpy(source.initial())
    noise = torch.from_numpy(np.stack([source.step(i) for i in range(steps)]))
    golden, runs = [], _runs(process)
    for run, (sampler, guidance) in enumerate(runs):
        counted, side = iter(range(1, steps + 1)), float(factor * info.input_size)
        numbers = {"height": side, "width": side, "guidance": guidance}

        def network(x: Tensor, t: float, run: int = run, numbers: Any = numbers, counted: Any = counted) -> Tensor:
            report("recording golden trajectories with PyTorch", run * steps + next(counted), len(runs) * steps)
            return _guided(model, process, x, t, prompts, numbers)

        x = _trajectory(network, process, info, z, noise, sampler, model.interface.multiple)
        name = f"{sampler}-{steps}"
        file = f"golden/{name}{'-unguided' if run and process.flow is not None else ''}.safetensors"
        tensors = {"z": z, "noise": noise, "lengths": prompts.lengths, "x": x, **prompts.rows}
        write_tensors(folder / file, {name: tensor.numpy() for name, tensor in tensors.items()})
        golden.append(GoldenInfo(file=file, program=name, guidance=guidance, tolerance=GOLDEN_TOLERANCE))
    return golden


def _runs(process: Process) -> list[tuple[str, float]]:
    """Sampler and guidance of each trajectory."""
    if process.flow is None:
        return [("ddpm", GOLDEN_GUIDANCE), ("ddim", 1.0)]
    return [("flow-euler", GOLDEN_GUIDANCE), ("flow-euler", 1.0)][1 if process.kind == "none" else 0 :]


def _prompts(checkpoint: PromptCheckpoint, images: int) -> _Prompts:
    lengths, rows, masks = torch.tensor([*LENGTHS[:images], LENGTHS[-1]]), {}, {}
    generator = torch.Generator().manual_seed(3)
    for number, use in enumerate(checkpoint.encoders, start=1):
        suffix, most = f"_{number}" if number > 1 else "", int(lengths.max())
        mask = (torch.arange(most) < lengths[:, None]).long()
        for name, shape in use.info.rows(suffix, most).items():
            rows[name] = torch.randn(images + 1, *shape, generator=generator)
            if use.info.masked and len(shape) == 2:
                rows[name], masks[f"mask{suffix}"] = rows[name] * mask[..., None], mask
    return _Prompts(lengths, rows, masks)


def _trajectory(
    network: Any, process: Process, info: ModelInfo, z: Tensor, noise: Tensor, sampler: str, multiple: int
) -> Tensor:
    """multiple: side of an image token in a latent, where steps depend on their number."""
    schedule, steps = process.schedule, len(noise)
    if process.flow is not None:
        sigmas = flow_sigmas(process.flow, steps, (info.input_size // multiple) ** 2)
        return sigma_trajectory(network, z, sigmas, info.timestep_range[0])
    assert schedule is not None
    timesteps, alphas = respaced_timesteps(str(steps), schedule.steps).tolist(), trained_alphas_cumprod(schedule)
    return reference_trajectory(network, z, noise, timesteps, sampler, info.learned_variance, info.prediction, alphas)


def _guided(model: Any, process: Process, x: Tensor, t: float, prompts: _Prompts, numbers: dict[str, float]) -> Tensor:
    """Guidance in the first C channels, the rest conditional; or the number that the network is told."""
    images, channels, guidance = len(x), x.shape[1], numbers["guidance"]
    conditional = _network(model, x, t, prompts.at(slice(0, images)), numbers)
    if guidance == 1.0 or process.kind != "true":
        return conditional
    alone = {name: values.expand(images, *values.shape[1:]) for name, values in prompts.at(slice(-1, None)).items()}
    output = guided(conditional, _network(model, x, t, alone, numbers), guidance, channels)
    if model.interface.renormalised:
        output = output * (conditional.norm(dim=-1, keepdim=True) / output.norm(dim=-1, keepdim=True))
    return output


def _filled(rows: Tensor, shape: Shape) -> Tensor:
    """Zeros where there are no words, as far as a family reads them: rows, and a mask's numbers."""
    missing = shape[0] - rows.shape[1] if isinstance(shape[0], int) else 0
    return F.pad(rows, (0, 0) * (len(shape) - 1) + (0, missing)) if missing else rows


def _network(model: Any, x: Tensor, t: float, prompts: dict[str, Tensor], numbers: dict[str, float]) -> Tensor:
    own, sides = model.interface, x.shape[2:]
    told = {name: torch.full((len(x),), numbers[name]) for name in own.scalars}
    made = model.context(**{name: _filled(prompts[name], shape) for name, shape in own.reads.items()})
    context, *rest = made if isinstance(made, tuple) else (made,)
    given = {"context": context, "prompt": torch.arange(len(x))}
    if own.biased:
        given["context_bias"] = rest[0]
    if own.vector is not None:
        told["vector"] = rest[-1]
    if own.position is not None:
        given["position"] = model.position(*(torch.arange(float(side // own.multiple)) for side in sides))
    return model.trunk(x, model.conditioner(torch.full((len(x),), float(t)), **told), **given)
