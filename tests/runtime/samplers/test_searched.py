"""The searched solvers against their paper's equation, and on a denoiser that is known exactly: a Gaussian mixture's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ditedge.runtime.errors import ProgramError
from ditedge.runtime.samplers import SAMPLERS, Grid, ddim, dpm_solver, euler, flow_grid, flow_searched, searched
from ditedge.runtime.samplers.program import check_program
from ditedge.runtime.samplers.searched import flow_searched_grid, searched_grid
from ditedge.runtime.samplers.searched_tables import DIFFUSION, FLOW
from ditedge.runtime.samplers.settings import SamplerSettings, make_program
from tests.runtime.samplers.mixture import END, START, distance, exact_x0, preserving, sampled
from tests.runtime.samplers.trajectories import LINEAR


def by_equation(steps: int, grid: Grid, times: int = 1) -> np.ndarray:
    """Equation 19 in a plain loop; times: 2 is what the released code does, a DDIM step more in every turn."""
    x, found, weights = START, [], DIFFUSION[steps][1]
    for i in range(steps):
        x0 = exact_x0(x, grid.alpha[i], grid.sigma[i])
        found.append(x0)
        estimate = sum((c * earlier for c, earlier in zip(weights[i], found, strict=False)), np.zeros_like(x))
        estimate = estimate + (1 - sum(weights[i])) * x0
        gain = grid.alpha[i + 1] / grid.sigma[i + 1] - grid.alpha[i] / grid.sigma[i]
        for said in (estimate, x0)[:times]:
            x = grid.sigma[i + 1] / grid.sigma[i] * x + grid.sigma[i + 1] * gain * said
        found += [x0] * (times - 1)
    return x


@pytest.mark.parametrize("steps", DIFFUSION)
def test_the_table_is_the_papers_equation_and_beats_the_usual_ones(steps: int, fine: np.ndarray) -> None:
    """On data that they never saw: with its times and weights every count beats DPM-Solver++ 2M, and its released form."""
    grid = preserving(0.999 - np.cumsum([0, *DIFFUSION[steps][0][:-1]]))
    found = sampled(searched(grid), grid)
    np.testing.assert_allclose(found, by_equation(steps, grid), rtol=0, atol=1e-10)
    even, ours = preserving(np.linspace(0.999, END, steps + 1)[:-1]), distance(found, fine)
    assert ours < 0.95 * distance(sampled(dpm_solver(even), even), fine)
    assert ours < 0.8 * distance(sampled(ddim(even), even), fine)
    assert ours < 0.6 * distance(by_equation(steps, grid, times=2), fine)


@pytest.mark.parametrize("steps", FLOW)
def test_the_flows_table_is_a_weighted_velocity_and_beats_euler(steps: int, fine_flow: np.ndarray) -> None:
    grid = flow_searched_grid(steps)
    found, x, velocities = sampled(flow_searched(grid), grid), START, []
    for i, weights in enumerate(FLOW[steps][1]):
        velocities.append((exact_x0(x, grid.alpha[i], grid.sigma[i]) - x) / grid.sigma[i])
        mean = sum((c * v for c, v in zip(weights, velocities, strict=False)), (1 - sum(weights)) * velocities[-1])
        x = x + (grid.sigma[i] - grid.sigma[i + 1]) * mean
    np.testing.assert_allclose(found, x, rtol=0, atol=1e-10)
    even = flow_grid(steps)
    assert distance(found, fine_flow) < 0.95 * distance(sampled(euler(even, prediction="flow"), even), fine_flow)


@pytest.mark.parametrize(("make", "steps"), [(searched_grid, DIFFUSION), (flow_searched_grid, FLOW)])
def test_a_known_image_is_reached(make: Callable[..., Grid], steps: dict) -> None:
    """Whatever the weights are: they sum to 1."""
    flow = make is flow_searched_grid
    for n in steps:
        grid = make(n) if flow else make(LINEAR, n)
        program = SAMPLERS["flow-searched" if flow else "searched"](grid)
        check_program(program)
        state = np.zeros((program.slots, 2))  # in units of the image and of the first noise
        state[0] = grid.alpha[0], grid.sigma[0]
        for i in range(n):
            np.testing.assert_allclose(state[0], [grid.alpha[i], grid.sigma[i]], rtol=0, atol=1e-9)
            state = program.mix[i][:, :-1] @ np.stack([*state, np.array([1.0, 0.0])])
        np.testing.assert_allclose(state[0], [1, 0], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "settings", "complaint"),
    [
        (LINEAR, SamplerSettings("searched", 12), "12 steps were not searched: give one of 5, 6, 7, 8, 9, 10"),
        (LINEAR, SamplerSettings("searched", 5, spacing="trailing"), "searched visits its own timesteps"),
        (None, SamplerSettings("flow-searched", 4), "4 steps were not searched: give one of 5, 6, 7, 8, 9, 10, 15"),
        (None, SamplerSettings("flow-searched", 5, shift=3.0), "shift is no setting of flow-searched"),
        (None, SamplerSettings("searched", 5), "'searched' is not one of flow-euler"),
    ],
)
def test_other_settings_are_refused(schedule, settings: SamplerSettings, complaint: str) -> None:
    with pytest.raises(ProgramError, match=complaint):
        make_program(schedule, settings, learned_variance=False, prediction="epsilon" if schedule else "flow")
