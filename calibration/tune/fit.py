"""Coefficients by least squares: each row takes the state as near as it can to where many steps would have taken it.

For row i, columns are x_i and the last estimates of x0; the target is x_{i+1} of a reference trajectory from the same
noise, which takes several steps between two points of the grid under the guidance of the row. Rows are fitted in order
on what the rows before them make, so that each also mends what they left; the last target is the finished image.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...runtime.loop.given import FromLatent
from ...runtime.loop.loop import StepEvent
from ...runtime.loop.noise import SeededNoise
from ...runtime.loop.session import Session
from ...runtime.samplers import dpm_solver
from ...runtime.samplers.grid import Grid
from ...runtime.samplers.program import Program
from ..pool import Pool
from .shapes import Shape, grid_of_ratios, guidance_factors, mix_of_weights, points, ratios_of_model

BETWEEN = 5  # steps of the reference between two points of the grid
BEYOND = 6  # from the last point to the least noise, and to the image
IMAGES = 32
PRIOR = 1e-3  # weight of the solver's own coefficients, relative to the columns' energy


def fitted_program(shape: Shape, session: Session, pool: Pool, seed: int) -> Program:
    """The program of the shape's points and guidance, its rows fitted with `shape.columns` estimates of x0.

    The last `columns - 1` estimates are held in slots, as DPM-Solver++ does, whose coefficients are what the fit
    begins from. Raises ProgramError.
    """
    bundle = session.bundle
    own = dpm_solver(_grid(shape, session), order=min(shape.columns, 3), prediction=bundle.manifest.model.prediction)
    own = replace(own, guidance=guidance_factors(shape, bundle), process=bundle.process)
    target, x = _reference(shape, session, pool, seed)
    mix = np.zeros((shape.steps, shape.columns, shape.columns + 2))
    history: list[np.ndarray] = []
    for i in range(shape.steps):
        history = [_x0(own, i, session, pool, seed, x), *history][: shape.columns]
        before = _coefficients(own.mix[i, 0], len(history))
        weights = least_squares([x, *history], target[i], before)
        x = sum(w * column for w, column in zip(weights, [x, *history], strict=True))  # type: ignore[assignment]
        x = x.astype(np.float32)
        mix[i] = mix_of_weights([*weights, *[0.0] * (shape.columns - len(history))])
    return replace(own, mix=mix)


def least_squares(columns: list[np.ndarray], target: np.ndarray, before: np.ndarray) -> np.ndarray:
    """w of least |sum_j w_j column_j - target|^2 + PRIOR sum_j |column_j|^2 (w_j - before_j)^2. float64"""
    matrix = np.stack([column.ravel() for column in columns], axis=1).astype(np.float64)
    normal = matrix.T @ matrix
    prior = PRIOR * np.diag(np.diag(normal))
    right = matrix.T @ (target.ravel().astype(np.float64) - matrix @ before)
    found: np.ndarray = before + np.linalg.solve(normal + prior, right)
    return found


def _coefficients(row: np.ndarray, estimates: int) -> np.ndarray:
    """DPM-Solver's row [x, earlier x0 ..., x0, noise] as [x, x0, earlier x0 ...] of so many estimates."""
    found = np.concatenate([row[:1], row[-2:-1], row[1:-2]])
    return np.pad(found, (0, max(0, 1 + estimates - len(found))))[: 1 + estimates]


def _grid(shape: Shape, session: Session) -> Grid:
    return grid_of_ratios(points(shape, session.bundle), session.bundle)


def _reference(shape: Shape, session: Session, pool: Pool, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """(x at the next point of every row, and the image last; the noise that it began with): float32 each."""
    bundle, ratios = session.bundle, points(shape, session.bundle)
    least = min(ratios_of_model(bundle)[1], ratios[-1] / 2)
    ends = np.append(ratios, least)
    between = [BETWEEN] * (shape.steps - 1) + [BEYOND]
    fine = [np.geomspace(a, b, n, endpoint=False) for a, b, n in zip(ends, ends[1:], between, strict=False)]
    grid = grid_of_ratios(np.concatenate([*fine, [least]]), bundle)
    factors = guidance_factors(shape, bundle)
    program = dpm_solver(grid, order=2, prediction=bundle.manifest.model.prediction)
    every = np.append(np.repeat(factors, between), factors[-1])
    program = replace(program, guidance=every, process=bundle.process)
    path: list[np.ndarray] = []

    def on_step(event: StepEvent) -> None:
        path.append(event.latents.copy())

    noise = SeededNoise([seed + i for i in range(IMAGES)], bundle.manifest.model.latent_shape)
    guidance = bundle.manifest.defaults.guidance
    last = pool.latents(session, program, pool.cycled(0, IMAGES), guidance, noise, on_step)
    reached = np.cumsum(between)[:-1] - 1
    return [*(path[i] for i in reached), last], np.array(noise.initial())


def _x0(program: Program, row: int, session: Session, pool: Pool, seed: int, x: np.ndarray) -> np.ndarray:
    """What the network makes of x at a row: its estimate of x0, guided as the row is."""
    one = slice(row, row + 1)
    step = replace(
        program,
        timestep=program.timestep[one],
        x0_from=program.x0_from[one],
        log_sigma=program.log_sigma[one],
        guidance=program.guidance[one],
        mix=np.array([[[0.0, 1.0, 0.0]]]),
        init=(1.0, 0.0),
    )
    noise = SeededNoise([seed + i for i in range(len(x))], x.shape[1:])
    guidance = session.bundle.manifest.defaults.guidance
    return pool.latents(session, step, pool.cycled(0, len(x)), guidance, FromLatent(noise, x, None)).copy()
