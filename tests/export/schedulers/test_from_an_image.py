"""Programs that begin from an image against diffusers' schedulers, begun as its image-to-image pipelines do."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from ditedge.runtime.errors import ProgramError
from ditedge.runtime.samplers import ddim, ddpm, deis, dpm_solver, euler, flow_grid, unipc
from ditedge.runtime.samplers.flow import flow_grid_diffusers
from ditedge.runtime.samplers.grid import begun_within
from ditedge.runtime.samplers.levels import levels_of_process, levels_of_program
from ditedge.runtime.samplers.process import NO_BETAS
from ditedge.runtime.samplers.program import check_program
from ditedge.runtime.samplers.settings import SamplerSettings, make_program
from tests.export.schedulers.by_diffusers import diffusers_trajectory, diffusers_warnings
from tests.runtime.samplers.trajectories import LINEAR, SIZE, TOLERANCE, multistep_grid, plain_grid, replay, sigma_grid

pytestmark = diffusers_warnings
LINEAR_BETAS = {"beta_start": 1e-4, "beta_end": 0.02}
IMAGE = np.random.default_rng(8).uniform(-1, 1, SIZE)
# The last steps' order is lowered by the number of steps: ours counts those that are taken, diffusers all.
WITHOUT_LOWERING = partial(deis, lower_order_final=False)
CASES = {  # name: grid of n steps, sampler, diffusers' scheduler, its settings, predictions
    "ddim": (lambda n: plain_grid(LINEAR, n), ddim, "DDIMScheduler", {"clip_sample": False}, ("epsilon", "v", "x0")),
    "ddpm": (lambda n: plain_grid(LINEAR, n), ddpm, "DDPMScheduler", {"clip_sample": False}, ("epsilon",)),
    "dpm++": (lambda n: multistep_grid(LINEAR, n), dpm_solver, "DPMSolverMultistepScheduler", LINEAR_BETAS, ("epsilon", "v")),
    "unipc": (lambda n: multistep_grid(LINEAR, n), unipc, "UniPCMultistepScheduler", LINEAR_BETAS, ("epsilon",)),
    "deis": (lambda n: multistep_grid(LINEAR, n, final="sigma_min"), WITHOUT_LOWERING, "DEISMultistepScheduler",
             LINEAR_BETAS | {"lower_order_final": False}, ("epsilon",)),
    "euler": (lambda n: sigma_grid(LINEAR, n), euler, "EulerDiscreteScheduler", LINEAR_BETAS, ("epsilon",)),
    "flow-euler": (lambda n: flow_grid_diffusers(n, shift=3), euler, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, ("flow",)),
}  # fmt: skip


@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
@pytest.mark.parametrize("name", CASES)
def test_trajectory_equals_diffusers(monkeypatch: pytest.MonkeyPatch, name: str, strength: float) -> None:
    grid, sampler, scheduler, config, predictions = CASES[name]
    for prediction in predictions:
        cut = begun_within(grid(20), strength)
        program = replace(sampler(cut, prediction=prediction), init=(cut.alpha[0], cut.sigma[0]))
        check_program(program)
        first = 20 - int(20 * strength)
        expected = diffusers_trajectory(monkeypatch, scheduler, config, 20, prediction, image=IMAGE, first=first)
        actual = replay(program, prediction, IMAGE)
        assert actual.shape == expected.shape
        error = np.abs(actual - expected).max(axis=1) / np.abs(expected).max(axis=1)
        assert error.max() < TOLERANCE, f"{prediction}, step {error.argmax()}: {error.max():.1e}"


@pytest.mark.parametrize(
    ("schedule", "settings", "prediction"),
    [
        (LINEAR, SamplerSettings("dpm++", 10, strength=0.5), "epsilon"),
        (LINEAR, SamplerSettings("heun", 6, strength=0.5), "v"),
        (LINEAR, SamplerSettings("ddim", 10, eta=1.0), "x0"),
        (None, SamplerSettings("flow-euler", 10, strength=0.4), "flow"),
        (None, SamplerSettings("flow-heun", 4), "flow-to-data"),
        (None, SamplerSettings("edm-heun", 6, strength=0.5), "edm"),
    ],
)
def test_a_program_says_how_noisy_each_step_is(schedule, settings: SamplerSettings, prediction: str) -> None:
    """Read off x0_from, and as the process has it of the timesteps: by those a mask puts back what is kept."""
    ends = {"flow": (1000.0, 0.0), "flow-to-data": (0.0, 1.0), "edm": NO_BETAS["edm"]}.get(prediction, (999.0, 0.0))
    program = make_program(schedule, settings, learned_variance=False, prediction=prediction, timestep_range=ends)
    levels = levels_of_program(program)
    assert program.process is not None
    np.testing.assert_allclose(levels[:-1], levels_of_process(program.timestep, program.process), atol=2e-4)
    np.testing.assert_array_equal(levels[-1], [1, 0])
    if settings.strength is not None:
        np.testing.assert_allclose(program.init, levels[0], rtol=1e-12)


@pytest.mark.parametrize(
    ("strength", "sampler", "complaint"),
    [
        (0.0, "ddim", "strength 0 is not above 0 and at most 1"),
        (1.5, "ddim", "strength 1.5 is not above 0 and at most 1"),
        (float("nan"), "ddim", "strength nan"),
        (0.09, "ddim", "strength 0.09 of 10 steps leaves none: at least 0.1"),
        (0.5, "searched", "searched takes all of its steps or none"),
    ],
)
def test_strengths_that_make_no_sense(strength: float, sampler: str, complaint: str) -> None:
    with pytest.raises(ProgramError, match=complaint):
        make_program(LINEAR, SamplerSettings(sampler, 10, strength=strength), learned_variance=False)


def test_a_grid_is_cut_from_its_noisy_end() -> None:
    grid = flow_grid(10)
    cut = begun_within(grid, 0.35)
    assert cut.steps == 3 and cut.timestep.tolist() == grid.timestep[7:].tolist() and cut.sigma[-1] == 0
