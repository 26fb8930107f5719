"""Where few steps lie best: "Accelerating Diffusion Sampling with Optimized Time Steps" (Xue et al., CVPR 2024).

A multistep solver in x0 form ends at sigma_N / sigma_0 x + sigma_N sum_n sum_i c_ni x0_i, where c_ni is the integral
over step n of e^lambda times the Lagrange polynomial of evaluation i, and lambda = log(alpha / sigma). So an error of
the network at evaluation i, taken to be e_i = sigma_i^2 / alpha_i as in the authors' code, is in the picture c_ni
times. What is minimised is sum_n |(e_i c_ni)_i|_2: it knows the noise schedule, the number of steps and the solver's
order, and asks no network.

The paper's bound first adds up what all steps say of one evaluation and takes the absolute value then. Weights of both
signs cancel there: for order 2 its minimum is a comb of long and short steps, worse than even ones on data that is
known exactly. The authors' code keeps the first three steps apart; here all are, so that there is one minimum, wherever
the search begins. They take scipy's trust region; with lengths as a softmax no constraint is left, and BFGS does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..errors import ProgramError
from .flow import flow_grid_from_sigmas
from .grid import Grid, timesteps_at
from .process import LEAST
from .schedule import Schedule

MOST_STEPS = 50  # by then evenly spaced ones are as good, and the search grows with their cube
MOST_POINTS = 3  # of one step: with more, weights of both signs grow
FLOW_END = 1e-3  # of a flow's time: as near to noise and to data as its solvers look
TURNS, ENOUGH = 500, 1e-8  # of the descent: at most, and the fall of the bound below which it ends
NUDGE = 1e-5  # for central differences


def optimised_timesteps(schedule: Schedule, steps: int, order: int = 2) -> np.ndarray:
    """Timesteps [steps] for a solver of this order, falling, whole, float64.

    The first is the schedule's last, and the last is followed by a step to sigma 0: `grid_from_timesteps(schedule,
    optimised_timesteps(schedule, 10))`. Whole, so that no processor's rounding shows. schedule: a bundle's is
    `bundle.schedule`. order: 1, 2 or 3, what is above counts as 3; DDIM's and Euler's error is lower on the times of
    order 2 than on those of order 1. Takes 0.1 s for 10 steps, 1 s for 50. Raises ProgramError.
    """
    if steps > schedule.steps:
        raise ProgramError(f"{steps} steps: the schedule has 1 to {schedule.steps}")
    abar = np.maximum(schedule.alphas_cumprod, LEAST)  # what `positive_snr` leaves of the last one may be above others
    noise, data = np.log(abar[[-1, 0]] / (1 - abar[[-1, 0]])) / 2
    sigmas = np.exp(-optimised_log_snr(noise, data, steps, order)[:-1])
    found = timesteps_at(replace(schedule, alphas_cumprod=abar), sigmas).round()
    found = np.minimum(found, np.flatnonzero(abar > abar[-1])[-1])
    left = np.arange(steps)[::-1]
    found = np.minimum.accumulate(np.maximum(found, left) - left) + left  # two in one place: the later moves on
    return np.append(schedule.steps - 1.0, found[1:])


def optimised_flow_grid(steps: int, order: int = 2, timestep_scale: float = 1000.0, data_at_one: bool = False) -> Grid:
    """The same of a flow: from sigma 1 to 0, in thousandths but where two would meet. Raises ProgramError."""
    end = np.log(1 / FLOW_END - 1)
    sigma = 1 / (1 + np.exp(optimised_log_snr(-end, end, steps, order)[:-1]))
    left = np.arange(steps)[::-1] + 1
    thousandths = np.maximum((sigma / FLOW_END).round(), left) - left
    thousandths[0] = 1 / FLOW_END - steps
    sigma = (np.minimum.accumulate(thousandths) + left) * FLOW_END
    return flow_grid_from_sigmas(sigma, timestep_scale=timestep_scale, data_at_one=data_at_one)


def optimised_log_snr(noise: float, data: float, steps: int, order: int = 2) -> np.ndarray:
    """lambda of the steps + 1 points between two ends, rising, [steps + 1] float64; the ends are kept.

    noise, data: lambda where the sampler begins, and ends. Raises ProgramError.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise ProgramError(f"spacing optimised is for 1 to {MOST_STEPS} steps, not {steps}: space more of them evenly")
    if order < 1:
        raise ProgramError(f"order {order} is not at least 1")
    if not noise < data:
        raise ProgramError("the noise of a sampler must fall: its first point has the least")

    def points(x: np.ndarray) -> np.ndarray:
        """[P, steps - 1] -> [P, steps + 1]: shares of the way as a softmax, so that they rise whatever x is."""
        lengths = np.exp(np.pad(x, ((0, 0), (0, 1))) - np.max(x, axis=1, initial=0, keepdims=True))
        shares = np.cumsum(lengths, axis=1) / lengths.sum(axis=1, keepdims=True)
        return noise + (data - noise) * np.pad(shares, ((0, 0), (1, 0)))

    found = points(_least(lambda x: bound(points(x), order), np.zeros(steps - 1))[None])[0]
    found[-1] = data
    return found


def bound(log_snr: np.ndarray, order: int) -> np.ndarray:
    """sum_n |(e_i c_ni)_i|_2 (see above) for lambdas [..., steps + 1], rising: [...] float64.

    The order is lower where there are fewer points: at the start, and in the last steps.
    """
    points = np.asarray(log_snr, dtype=np.float64)
    steps = points.shape[-1] - 1
    error = np.exp(-points - np.logaddexp(0, 2 * points) / 2)  # sigma^2 / alpha
    total = np.zeros(points.shape[:-1])
    for n in range(steps):
        used = slice(n + 1 - min(order, MOST_POINTS, n + 1, steps - n), n + 1)
        weights = _weights(points[..., used] - points[..., n, None], points[..., n + 1] - points[..., n])
        total += np.exp(points[..., n]) * np.linalg.norm(weights * error[..., used], axis=-1)
    return total


def _weights(nodes: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Integrals of e^s l_j(s) from 0 to h, [..., k]; l_j: the Lagrange polynomials of nodes [..., k], the last at 0."""
    moments = [np.expm1(h)]
    for j in range(1, nodes.shape[-1]):
        moments.append(np.exp(h) * h**j - j * moments[-1])
    powers = nodes[..., None, :] ** np.arange(nodes.shape[-1])[:, None]
    return np.linalg.solve(powers, np.stack(moments, axis=-1)[..., None])[..., 0]


def _least(value: Callable[[np.ndarray], np.ndarray], start: np.ndarray) -> np.ndarray:
    """Where `value` ([P, n] -> [P]) is least, [n]: BFGS (Nocedal & Wright, algorithm 6.1), slopes by differences."""
    nudges = NUDGE * np.eye(len(start))

    def slope_at(x: np.ndarray) -> np.ndarray:
        both = value(np.concatenate([x + nudges, x - nudges]))
        return (both[: len(x)] - both[len(x) :]) / (2 * NUDGE)

    if not len(start):
        return start
    x, best, slope, inverse = start, float(value(start[None])[0]), slope_at(start), np.eye(len(start))
    plain = True  # the next way is straight down
    for _ in range(TURNS):
        way, length = -inverse @ slope, 1.0
        way /= max(1.0, np.abs(way).max())  # no step grows by more than e in one turn
        fall = float(slope @ way)
        while (found := float(value((x + length * way)[None])[0])) > best + 1e-4 * length * fall and length > 1e-8:
            length /= 2
        if best - found < ENOUGH * best:
            if plain:
                return x
            inverse, plain = np.eye(len(x)), True
            continue
        moved, turned = length * way, slope_at(x + length * way) - slope
        x, best, slope, plain = x + moved, found, slope + turned, False
        if (curve := float(moved @ turned)) > 0:
            left = np.eye(len(x)) - np.outer(moved, turned) / curve
            inverse = left @ inverse @ left.T + np.outer(moved, moved) / curve
    return x
