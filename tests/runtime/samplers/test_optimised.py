"""Optimised times: the bound that they minimise, that they do, and that a solver errs less on them."""

from __future__ import annotations

import numpy as np
import pytest

from ditedge.runtime.errors import ProgramError
from ditedge.runtime.samplers import dpm_solver, flow_grid, grid_from_timesteps, unipc
from ditedge.runtime.samplers.optimised import bound, optimised_flow_grid, optimised_log_snr, optimised_timesteps
from ditedge.runtime.samplers.program import check_program
from ditedge.runtime.samplers.schedule import linear_schedule, positive_snr, zero_terminal_snr
from ditedge.runtime.samplers.settings import SamplerSettings, make_program
from tests.runtime.samplers.mixture import END, distance, preserving, sampled
from tests.runtime.samplers.trajectories import COSINE, LINEAR, OWN, SCALED, ZERO_SNR

ENDS = (-5.07, 4.60)  # lambda of DDPM's last and first timestep
LAMBDAS = np.array([-4.0, -2.5, -1.8, -0.4, 0.9, 3.0])


def quadrature(points: np.ndarray, order: int) -> float:
    """The bound with the integrals as sums over 200,000 points a step."""
    steps, total = len(points) - 1, 0.0
    for n in range(steps):
        used = range(n + 1 - min(order, n + 1, steps - n), n + 1)
        at = points[n] + (np.arange(200_000) + 0.5) / 200_000 * (points[n + 1] - points[n])
        parts = []
        for i in used:
            others = [points[j] for j in used if j != i]
            lagrange = np.prod([(at - other) / (points[i] - other) for other in others], axis=0) * np.ones_like(at)
            sigma = 1 / np.sqrt(1 + np.exp(2 * points[i]))
            error = sigma**2 / np.sqrt(1 - sigma**2)
            parts.append(error * np.mean(np.exp(at) * lagrange) * (points[n + 1] - points[n]))
        total += float(np.linalg.norm(parts))
    return total


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_bound_is_the_integral_of_the_solvers_polynomials(order: int) -> None:
    assert bound(LAMBDAS, order) == pytest.approx(quadrature(LAMBDAS, order), rel=1e-8)
    pair = np.stack([LAMBDAS, LAMBDAS + 0.1])
    np.testing.assert_allclose(bound(pair, order), [bound(row, order) for row in pair], rtol=1e-14)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [2, 5, 10, 20])
def test_no_spacing_has_a_lower_bound(steps: int, order: int) -> None:
    """Not even steps of lambda or of time, and none of 200 beside it; the ends are kept, and lambda rises."""
    found = optimised_log_snr(*ENDS, steps, order)
    assert found.shape == (steps + 1,) and tuple(found[[0, -1]]) == ENDS and np.all(np.diff(found) > 0)
    least = float(bound(found, order))
    timesteps = np.linspace(999, 0, steps + 1).round().astype(int)
    abar = LINEAR.alphas_cumprod[timesteps]
    for other in (np.linspace(*ENDS, steps + 1), np.log(abar / (1 - abar)) / 2):
        assert least < (0.9995 if steps == 2 else 0.97) * bound(other, order)
    rng = np.random.default_rng(0)
    for size in (1e-1, 1e-2):
        beside = np.repeat(found[None], 100, axis=0)
        beside[:, 1:-1] += size * np.diff(found).min() * rng.uniform(-1, 1, (100, steps - 1))
        assert least <= bound(beside, order).min() * (1 + 1e-9)


@pytest.mark.parametrize("schedule", [LINEAR, SCALED, COSINE, OWN, ZERO_SNR, zero_terminal_snr(LINEAR)])
@pytest.mark.parametrize("steps", [1, 4, 10, 50])
def test_timesteps_are_whole_fall_and_begin_at_the_noisiest(schedule, steps: int) -> None:
    found = optimised_timesteps(schedule, steps)
    assert found.dtype == np.float64 and len(found) == steps and found[0] == schedule.steps - 1 and found[-1] >= 0
    assert np.array_equal(found, found.round()) and np.all(np.diff(found) <= -1)
    check_program(dpm_solver(grid_from_timesteps(positive_snr(schedule), found)))


def test_every_timestep_of_a_short_training_is_taken_once() -> None:
    short = linear_schedule(steps=12)
    np.testing.assert_array_equal(optimised_timesteps(short, 12), np.arange(12)[::-1])
    with pytest.raises(ProgramError, match="13 steps: the schedule has 1 to 12"):
        optimised_timesteps(short, 13)


@pytest.mark.parametrize("steps", [1, 4, 20, 50])
def test_a_flow_goes_from_noise_to_data(steps: int) -> None:
    grid = optimised_flow_grid(steps, timestep_scale=1.0, data_at_one=True)
    assert grid.sigma[0] == 1 and grid.sigma[-1] == 0 and grid.steps == steps and np.all(np.diff(grid.sigma) < -9e-4)
    np.testing.assert_allclose(grid.timestep, 1 - grid.sigma[:-1])


@pytest.mark.parametrize("make", [dpm_solver, unipc])
def test_solvers_err_less_on_data_that_is_known(make, fine: np.ndarray) -> None:
    """At 4 to 12 steps, against even steps of time: the spacing that they have else."""
    times = np.linspace(1e-5, 1, 200_001)
    lambdas = -np.log(preserving(times).ratio[:-1])
    first, last = np.interp([0.999, END], times, lambdas)
    shares = []
    for steps in range(4, 13):
        points = optimised_log_snr(first, last, steps)[:-1]
        grids = (np.interp(-points, -lambdas, times), np.linspace(0.999, END, steps + 1)[:-1])
        ours, theirs = (distance(sampled(make(g), g), fine) for g in map(preserving, grids))
        shares.append(ours / theirs)
    assert np.mean(shares) < 0.85 and max(shares) < 1.05, shares


def test_a_flows_solver_errs_less_too(fine_flow: np.ndarray) -> None:
    shares = []
    for steps in (4, 6, 8, 10, 15):
        grid, even = optimised_flow_grid(steps), flow_grid(steps)
        ours, theirs = (distance(sampled(dpm_solver(g, prediction="flow"), g), fine_flow) for g in (grid, even))
        shares.append(ours / theirs)
    assert np.mean(shares) < 0.75 and max(shares) < 0.9, shares


def test_settings_name_them() -> None:
    """--spacing optimised, of the solver's order, and of 2 where it has none."""
    for sampler, order, of in (
        ("dpm++", None, 2),
        ("unipc", 3, 3),
        ("lms", 4, 3),
        ("ddim", None, 2),
        ("euler", None, 2),
    ):
        settings = SamplerSettings(sampler, 8, spacing="optimised", order=order)
        program = make_program(LINEAR, settings, learned_variance=False)
        check_program(program)
        np.testing.assert_array_equal(program.timestep, optimised_timesteps(LINEAR, 8, of))
        assert program.name == f"{sampler}{order or ''}-8-optimised" and program.made["spacing"] == "optimised"
    grid = grid_from_timesteps(LINEAR, optimised_timesteps(LINEAR, 8))
    ours = make_program(LINEAR, SamplerSettings("dpm++", 8, spacing="optimised"), learned_variance=False)
    np.testing.assert_array_equal(ours.mix, dpm_solver(grid).mix)
    flow = make_program(
        None, SamplerSettings("flow-dpm++", 8, spacing="optimised"), learned_variance=False, prediction="flow",
        timestep_range=(1000.0, 0.0),
    )  # fmt: skip
    np.testing.assert_array_equal(flow.timestep, optimised_flow_grid(8).timestep)


@pytest.mark.parametrize(
    ("schedule", "settings", "complaint"),
    [
        (
            LINEAR,
            SamplerSettings("dpm++", 51, spacing="optimised"),
            "spacing optimised is for 1 to 50 steps, not 51",
        ),
        (
            LINEAR,
            SamplerSettings("dpm++", 8, spacing="optimised", sigmas="karras"),
            "spacing and sigmas both say where",
        ),
        (LINEAR, SamplerSettings("tcd", 4, spacing="optimised"), "tcd visits its own timesteps"),
        (None, SamplerSettings("flow-euler", 4, spacing="optimised", shift=3.0), "shift and spacing both say where"),
        (None, SamplerSettings("flow-scm", 2, spacing="optimised"), "spacing is no setting of flow-scm, whose times"),
        (None, SamplerSettings("flow-euler", 4, spacing="trailing"), "spacing is for diffusion models; a flow takes"),
        (None, SamplerSettings("flow-euler", 4, sigmas="optimised"), "sigmas is for diffusion models; a flow takes"),
    ],
)
def test_other_settings_beside_it_are_refused(schedule, settings: SamplerSettings, complaint: str) -> None:
    with pytest.raises(ProgramError, match=complaint):
        make_program(schedule, settings, learned_variance=False, prediction="epsilon" if schedule else "flow")
