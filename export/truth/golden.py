"""Ready programs, and golden trajectories: what plain PyTorch computes, for `verify` to replay on any machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...runtime.bundle.manifest import GoldenInfo, ModelInfo
from ...runtime.files import write_tensors
from ...runtime.loop.noise import SeededNoise
from ...runtime.report import Report, silent
from ...runtime.samplers.program import write_program
from ...runtime.samplers.schedule import ScheduleInfo, respaced_timesteps, schedule_from_info
from ...runtime.samplers.settings import SamplerSettings, make_program
from ..networks.dit import Network
from .reference import flow_trajectory, guided_output, reference_trajectory, trained_alphas_cumprod

GOLDEN_TOLERANCE = 1e-4  # relative error at any step of a float32 trajectory; measured below 1e-5
GOLDEN_GUIDANCE = 4.0
DEFAULT_STEPS = 20  # of DPM-Solver++: what the table of docs/samplers.md says


def _golden_steps(info: ModelInfo) -> int:
    return 4 if info.is_large else 10


def write_programs(
    info: ModelInfo, schedule: ScheduleInfo | None, sampling: dict[str, Any], folder: Path
) -> tuple[dict[str, str], str]:
    """Ready programs -> name and file of each, and the default's name. sampling: the source's settings, or empty."""
    (folder / "programs").mkdir()
    betas = schedule_from_info(schedule) if schedule is not None else None
    golden = _golden_steps(info)
    if schedule is None:
        wanted, default = [("flow-euler", steps) for steps in (250, 50, 25, golden)], "flow-euler-50"
    else:
        wanted = [("dpm++", DEFAULT_STEPS), ("ddpm", 250), ("ddpm", 50), ("ddim", 50), ("ddim", 25)]
        default = f"dpm++-{DEFAULT_STEPS}"
        wanted = [(name, steps) for name, steps in wanted if steps <= schedule.steps]
        wanted += [("ddpm", golden), ("ddim", golden)]
    settings: list[dict[str, Any]] = [{"sampler": sampler, "steps": steps} for sampler, steps in wanted]
    programs = {}
    for chosen in [*settings, sampling] if sampling else settings:
        program = make_program(
            betas,
            SamplerSettings(**chosen),
            learned_variance=info.learned_variance,
            prediction=info.prediction,
            timestep_range=info.timestep_range,
        )
        programs[program.name] = f"programs/{program.name}.json"
        write_program(program, folder / programs[program.name])  # the source's own replaces one of the same name
        default = program.name if chosen is sampling else default
    return programs, default


def write_golden(
    model: Network, info: ModelInfo, schedule: ScheduleInfo | None, folder: Path, report: Report = silent
) -> list[GoldenInfo]:
    """Trajectories of the plain PyTorch sampler: DDPM guided (where the model can) and DDIM not; or flow, both ways."""
    (folder / "golden").mkdir()
    steps = _golden_steps(info)
    labels = [0] if info.is_large else [0, info.num_classes - 1]
    source = SeededNoise(list(range(len(labels))), info.latent_shape)
    z = torch.from_numpy(source.initial())
    noise = torch.from_numpy(np.stack([source.step(i) for i in range(steps)]))
    y = torch.tensor(labels)
    most, golden = GOLDEN_GUIDANCE if info.null_class is not None else 1.0, []
    runs = {"ddpm": ("ddpm", most), "ddim": ("ddim", 1.0)}
    if schedule is None:
        runs = {"flow-euler": ("flow-euler", most), "flow-euler-unguided": ("flow-euler", 1.0)}
    report("recording golden trajectories with PyTorch")
    done = 0
    for run, (sampler, guidance) in runs.items():

        def network(x: Tensor, t: float, guidance: float = guidance) -> Tensor:
            nonlocal done
            output = guided_output(model, x, t, y, guidance, info.guided_channels)
            done += 1
            report("recording golden trajectories with PyTorch", done, steps * len(runs))
            return output

        if schedule is None:
            x = flow_trajectory(network, z, steps)
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
