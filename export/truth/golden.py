"""Ready programs, and golden trajectories: what plain PyTorch computes, for `verify` to replay on any machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...runtime.bundle.manifest import GoldenInfo, ModelInfo
from ...runtime.files import write_tensors
from ...runtime.loop.noise import SeededNoise
from ...runtime.report import Report, silent
from ...runtime.samplers.process import NO_BETAS
from ...runtime.samplers.schedule import ScheduleInfo, respaced_timesteps
from ..networks.dit import Network
from .reference import (
    edm_trajectory,
    flow_trajectory,
    guided_output,
    mean_flow_trajectory,
    reference_trajectory,
    trained_alphas_cumprod,
)

GOLDEN_TOLERANCE = 1e-4  # relative error at any step of a float32 trajectory; measured below 1e-5
GOLDEN_GUIDANCE = 4.0


def write_golden(
    model: Network, info: ModelInfo, schedule: ScheduleInfo | None, folder: Path, steps: int, report: Report = silent
) -> list[GoldenInfo]:
    """Trajectories of the plain PyTorch sampler: DDPM guided (where the model can) and DDIM not; or flow, both ways."""
    (folder / "golden").mkdir()
    labels = [0] if info.is_large else [0, info.num_classes - 1]
    source = SeededNoise(list(range(len(labels))), info.latent_shape)
    z = torch.from_numpy(source.initial())
    noise = torch.from_numpy(np.stack([source.step(i) for i in range(steps)]))
    y = torch.tensor(labels)
    runs, golden = _runs(info, 1.0 if info.null_class is None else GOLDEN_GUIDANCE), []
    report("recording golden trajectories with PyTorch")
    done = 0
    for run, (sampler, guidance) in runs.items():

        def network(x: Tensor, t: float, interval: float = 0.0, guidance: float = guidance) -> Tensor:
            nonlocal done
            output = guided_output(model, x, t, y, guidance, info.guided_channels, interval)
            done += 1
            report("recording golden trajectories with PyTorch", done, steps * len(runs))
            return output

        if info.prediction == "mean-flow":
            x = mean_flow_trajectory(network, z, steps)
        elif info.prediction == "edm":
            x = edm_trajectory(network, z, steps)
        elif schedule is None:
            x = flow_trajectory(network, z, steps, info.prediction == "flow-to-data")
        else:
            x = reference_trajectory(
                network,
                z,
                noise,
                respaced_timesteps(str(steps), schedule.steps).tolist(),
                sampler,
                info.learned_variance,
                info.prediction,
                trained_alphas_cumprod(schedule),
            )
        file = f"golden/{run}-{steps}.safetensors"
        tensors = {"z": z, "noise": noise, "y": y, "x": x}
        write_tensors(folder / file, {k: v.numpy() for k, v in tensors.items()})
        program = f"{sampler}-{steps}"
        golden.append(GoldenInfo(file=file, program=program, guidance=guidance, tolerance=GOLDEN_TOLERANCE))
    return golden


def _runs(info: ModelInfo, guidance: float) -> dict[str, tuple[str, float]]:
    """By name: the sampler, and its guidance."""
    if info.prediction not in NO_BETAS:
        return {"ddpm": ("ddpm", guidance), "ddim": ("ddim", 1.0)}
    sampler = {"edm": "edm-euler", "mean-flow": "mean-flow"}.get(info.prediction, "flow-euler")
    return {sampler: (sampler, guidance), f"{sampler}-unguided": (sampler, 1.0)}
