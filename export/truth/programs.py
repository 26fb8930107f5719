"""The ready programs of a bundle: samplers that people want, those of its golden trajectories, the source's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...runtime.bundle.manifest import ModelInfo
from ...runtime.samplers.program import write_program
from ...runtime.samplers.schedule import ScheduleInfo, schedule_from_info
from ...runtime.samplers.settings import SamplerSettings, make_program

DEFAULT_STEPS = 20  # of DPM-Solver++: what the table of docs/samplers.md says


def golden_steps(info: ModelInfo) -> int:
    return 4 if info.is_large else 10


def write_programs(
    info: ModelInfo, schedule: ScheduleInfo | None, sampling: dict[str, Any], folder: Path
) -> tuple[dict[str, str], str]:
    """Ready programs -> name and file of each, and the default's name. sampling: the source's settings, or empty."""
    (folder / "programs").mkdir()
    betas = schedule_from_info(schedule) if schedule is not None else None
    golden = golden_steps(info)
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
