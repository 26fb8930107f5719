"""The ready programs of a bundle: samplers that people want, those of its golden trajectories, the source's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...runtime.bundle.manifest import ModelInfo
from ...runtime.errors import RequestError
from ...runtime.samplers.flow_settings import FlowInfo
from ...runtime.samplers.process import ProcessInfo, check_process
from ...runtime.samplers.program import Program, read_program, write_program
from ...runtime.samplers.schedule import ScheduleInfo, schedule_from_info
from ...runtime.samplers.settings import SamplerSettings, make_program

FILE_NAME = re.compile(r"\w[\w.+-]{0,99}", re.ASCII)
DEFAULT_STEPS = 20  # of DPM-Solver++: what the table of docs/samplers.md says


def golden_steps(info: ModelInfo, asked: int | None) -> int:
    """Of the recorded trajectories. asked: by the user; None: as many as the model's kind and size allow."""
    usual = 2 if info.prediction == "mean-flow" else 4 if info.is_large else 10
    return asked if asked is not None else usual


def write_programs(
    info: ModelInfo,
    schedule: ScheduleInfo | None,
    sampling: dict[str, Any],
    folder: Path,
    golden: int,
    flow: Flow | None = None,
    given: Sequence[Program] = (),
) -> tuple[dict[str, str], str]:
    """Ready programs -> name and file of each, and the default's name. sampling: the source's settings, or empty.

    golden: steps of the recorded trajectories. flow: how the steps of a flow that takes prompts are spaced. given: of
    `given_programs`; the first is the default. Raises RequestError where one has the name of another.
    """
    (folder / "programs").mkdir()
    wanted, default = _wanted(info, schedule, golden, flow)
    settings: list[dict[str, Any]] = [{"sampler": sampler, "steps": steps} for sampler, steps in wanted]
    programs: dict[str, str] = {}
    for chosen in [*settings, sampling] if sampling else settings:
        program = _program(info, schedule, chosen, flow, None if flow is None else flow.own_tokens)
        _write(program, folder, programs)  # the source's own replaces one of the same name
        default = program.name if chosen is sampling else default
    for program in given:
        if program.name in programs:
            raise RequestError(f"--program: '{program.name}' is the name of another program of this bundle")
        _write(program, folder, programs)
    return programs, given[0].name if given else default


def given_programs(files: Sequence[Path], info: ModelInfo, schedule: ScheduleInfo | None) -> tuple[Program, ...]:
    """What `--program` names. Raises ProgramError, or RequestError for one that was made for another kind of model."""
    process = ProcessInfo(prediction=info.prediction, timestep_range=info.timestep_range, schedule=schedule)
    programs = tuple(read_program(file) for file in files)
    for file, program in zip(files, programs, strict=True):
        check_process(program.name, program.process, process, "make one for this model, or leave --program out")
        if not FILE_NAME.fullmatch(program.name):
            raise RequestError(f"--program {file}: its name '{program.name}' cannot be that of a file")
    return programs


def write_sized_programs(
    info: ModelInfo, flow: Flow, default: str, folder: Path, programs: dict[str, str]
) -> dict[str, str]:
    """Ready programs of usual sizes, where steps depend on the size -> by numbers of image tokens, their names.

    default: that of the model's own size. programs: name -> file of all, to which they are added.
    """
    if flow.info.by_size is None:
        return {}
    by_tokens = {str(flow.own_tokens): default}
    for tokens in flow.tokens:
        if str(tokens) not in by_tokens:
            chosen = {"sampler": "flow-euler", "steps": flow.steps}
            program = _program(info, None, chosen, flow, tokens)
            program = replace(program, name=f"{program.name}-{tokens}")
            by_tokens[str(tokens)] = program.name
            _write(program, folder, programs)
    return by_tokens


@dataclass(frozen=True)
class Flow:
    """A flow that takes prompts. tokens: of pictures of usual sizes, which get ready programs."""

    info: FlowInfo
    steps: int
    own_tokens: int
    tokens: Sequence[int] = ()


def _wanted(
    info: ModelInfo, schedule: ScheduleInfo | None, golden: int, flow: Flow | None
) -> tuple[list[tuple[str, int]], str]:
    """Samplers and steps, and the name of the default."""
    if flow is not None:
        return [("flow-euler", steps) for steps in sorted({flow.steps, golden})], f"flow-euler-{flow.steps}"
    if info.prediction == "edm":
        return [("edm-heun", 40), ("edm-heun", 18), ("edm-euler", golden)], "edm-heun-18"
    if info.prediction == "mean-flow":
        counts = sorted({1, 2, 4, golden})
        return [*(("mean-flow", steps) for steps in counts), ("mean-consistency", 2)], "mean-flow-1"
    if schedule is None:
        return [("flow-euler", steps) for steps in (250, 50, 25, golden)], "flow-euler-50"
    usual = [("dpm++", DEFAULT_STEPS), ("ddpm", 250), ("ddpm", 50), ("ddim", 50), ("ddim", 25)]
    usual = [(name, steps) for name, steps in usual if steps <= schedule.steps]
    return [*usual, ("ddpm", golden), ("ddim", golden)], f"dpm++-{DEFAULT_STEPS}"


def _program(
    info: ModelInfo, schedule: ScheduleInfo | None, chosen: dict[str, Any], flow: Flow | None, tokens: int | None
) -> Program:
    return make_program(
        schedule_from_info(schedule) if schedule is not None else None,
        SamplerSettings(**chosen),
        learned_variance=info.learned_variance,
        prediction=info.prediction,
        timestep_range=info.timestep_range,
        flow=None if flow is None else flow.info,
        tokens=tokens,
    )


def _write(program: Program, folder: Path, programs: dict[str, str]) -> None:
    programs[program.name] = f"programs/{program.name}.json"
    write_program(program, folder / programs[program.name])
