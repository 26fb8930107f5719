"""Any linear diffusers scheduler as a Program, by probing (`ditedge schedule --from scheduler_config.json`).

A linear scheduler maps its initial noise, the x0 estimates and the step noises to samples by fixed numbers. Feed it
unit vectors of those in place of images and every sample it returns is a row of these numbers: the scheduler has
written its own table. What of the past a later sample still depends on is the state, and its rank the number of slots.

    trace     run the scheduler once on unit vectors                          -> Trace
    realise   per step: the row space of what is still to come, as slots      -> mix matrices
    prove     run scheduler and program on random histories, compare          -> ProgramError unless equal

That is proof of the scheduler's arithmetic, not that it is right: `exact_denoiser` tries programs on a perfect network.
The scheduler itself is run by `probe_run`, which alone knows diffusers.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import ProgramError
from ...runtime.samplers.program import NO_BOUND, Program, check_program
from ..sources.scheduler_config import read_scheduler_json
from .probe_run import ForeignScheduler, Step

AHEAD = 32  # samples looked ahead when the state is found; a slot that is first used later is caught by the proof
RANK_TOLERANCE = 1e-11  # of a sample's own coefficients: diffusers' solvers stay above 1e-6, rounding near 1e-15
PROOF_TOLERANCE = 1e-8  # of the largest number in the trajectory
HISTORIES, SEED = 64, 2024
MAX_TIMESTEPS = 100_000  # of training, as in a manifest

REFUSED = {  # settings that no table can hold, whatever the class
    "thresholding": "dynamic thresholding scales each image by a quantile of its own pixels",
    "use_dynamic_shifting": "its timesteps depend on the image size; give a config with a fixed shift",
}

REFUSED_CLASSES = {
    "SCMScheduler": "its pipeline changes what the network sees and says before and after it; `run --sampler flow-scm` "
    "has both in its table",
}


@dataclass(frozen=True)
class Trace:
    """What a scheduler did, in coordinates (initial noise, N x0 estimates, N step noises): D = 2N + 1.

    An x0 estimate is counted in the size that a unit prediction gives it, hundreds where little data is left: so no
    direction of the history is small only by its units.
    """

    timestep: np.ndarray  # [N]
    x0_from: np.ndarray  # [N, 2]
    x0_unit: np.ndarray  # [N] size of one unit of each x0 estimate
    seen: np.ndarray  # [N + 1, D] what the network sees before each step, then the final sample


def program_from_scheduler(config: dict[str, Any], steps: int, **step_options: Any) -> Program:
    """scheduler_config.json -> a Program that does the same with the fewest slots. Raises ProgramError with the reason.

    config: as diffusers writes it, with "_class_name". steps: what set_timesteps is given; a scheduler may evaluate the
    network more often (Heun). step_options: what the pipeline gives to every step, such as eta=0.5.
    """
    name = str(config.get("_class_name"))[:60]
    _check_sizes(config)
    for key, reason in REFUSED.items():
        if config.get(key):
            raise ProgramError(f"{name} with {key} cannot be a table: {reason}")
    if name in REFUSED_CLASSES:
        raise ProgramError(f"{name} alone is no sampler: {REFUSED_CLASSES[name]}")
    if config.get("variance_type") == "learned" and not name.startswith("DPMSolver"):
        raise ProgramError(
            f"{name} with variance_type 'learned': a table knows noise of size exp(k0 + k1 v), not sqrt(v)"
        )
    scheduler = ForeignScheduler(config, steps, step_options)
    linear = scheduler.without_clipping()
    trace = _trace(linear)
    mix, log_sigma = _realise(trace), np.zeros((len(trace.timestep), 2))
    if scheduler.learned_variance:
        log_sigma = _learned_log_sigma(linear, trace)
        mix[:, :, -1] *= np.exp(-log_sigma[:, :1])  # the trace saw v = 0, so its noise has size exp(k0)
    program = Program(
        name=f"{name.removesuffix('Scheduler')}-{steps}",
        timestep=trace.timestep,
        x0_from=trace.x0_from,
        log_sigma=log_sigma,
        mix=mix,
        guidance=np.ones(len(trace.timestep)),
        x0_bound=scheduler.x0_bound,
        init=(0.0, float(trace.seen[0, 0])),
        made={"scheduler": dict(config), "steps": steps, "step_options": step_options},
        process=scheduler.process,
    )
    check_program(program)
    _prove(scheduler, program)
    return program


def read_scheduler_program(path: Path, steps: int, step_options: dict[str, Any]) -> Program:
    """`program_from_scheduler` of a scheduler_config.json, or a folder with one. ProgramErrors name the file."""
    if importlib.util.find_spec("diffusers") is None:
        raise ProgramError("diffusers is not installed: pip install 'ditedge[diffusers]'")
    path = path.parent if path.name == "model_index.json" else path
    folder = path / "scheduler" if (path / "scheduler").is_dir() else path
    path = folder / "scheduler_config.json" if path.is_dir() else path
    config = read_scheduler_json(path, ProgramError)
    if not isinstance(config, dict) or "_class_name" not in config:
        raise ProgramError(f"{path}: has no _class_name, so it is not a diffusers scheduler config")
    return program_from_scheduler(config, steps, **step_options)


def _check_sizes(config: dict[str, Any]) -> None:
    """Nothing of a size that a table of timesteps cannot have reaches diffusers, which would build it."""
    for key, value in config.items():
        size = len(value) if isinstance(value, (list, dict, str)) else abs(value) if isinstance(value, int) else 0
        if size > MAX_TIMESTEPS:
            raise ProgramError(f"'{key[:60]}' has the size {str(size)[:20]}: at most {MAX_TIMESTEPS} is probed")


def _trace(scheduler: ForeignScheduler, v: float = 0.0) -> Trace:
    """Every history at once: the batch axis is the coordinate axis, and each x0 estimate is a new unit vector."""
    n = scheduler.evaluations
    unit = np.eye(2 * n + 1)
    made: list[Step] = []

    def network(step: Step) -> np.ndarray:
        made.append(step)
        a, b = step.x0_from
        return (max(1.0, abs(b)) * unit[1 + step.index] - a * step.seen) / b

    seen = scheduler.run(network, unit[0], lambda i: unit[1 + n + i], lambda i: v)
    x0_from = np.array([step.x0_from for step in made])
    return Trace(np.array([step.timestep for step in made]), x0_from, np.maximum(1.0, np.abs(x0_from[:, 1])), seen)


def _realise(trace: Trace) -> np.ndarray:
    """mix [N, K, K + 2] with the least K: the minimal realisation of a time-varying linear system.

    After step i the past is the coordinates seen so far, and all that still matters of it is the row space of the
    samples to come, restricted to the past (a block of the Hankel matrix). The next sample is slot 0; the others
    are an orthonormal basis of what the row space holds besides.
    """
    n = len(trace.timestep)
    bases = [_basis(trace.seen, i) for i in range(n + 1)]
    slots = max(len(basis) for basis in bases)
    mix = np.zeros((n, slots, slots + 2))
    for i, (before, after) in enumerate(zip(bases, bases[1:], strict=False)):
        norms = np.sum(before**2, axis=1)
        part = mix[i, : len(after)]
        part[:, : len(before)] = after @ before.T / norms  # rows of `before` are orthogonal
        part[:, slots] = after[:, 1 + i]
        part[:, slots + 1] = after[:, 1 + n + i]
        part[np.abs(part) < 1e-13 * np.abs(part).max(axis=1, keepdims=True)] = 0.0
        part[:, slots] /= trace.x0_unit[i]
    return mix


def _basis(seen: np.ndarray, i: int) -> np.ndarray:
    """The state before step i in coordinates of the past, [rank, D]: row 0 is what the network sees next."""
    n = len(seen) - 1
    past = np.zeros(2 * n + 1)
    past[0], past[1 : 1 + i], past[1 + n : 1 + n + i] = 1, 1, 1
    first = seen[i] * past
    future = seen[i + 1 : i + 1 + AHEAD]
    future = future * past / np.abs(future).max(axis=1, keepdims=True)
    if not len(future) or not first.any():
        return first[None]
    future = future - np.outer(future @ first / (first @ first), first)
    _, sizes, rows = np.linalg.svd(future, full_matrices=False)
    return np.concatenate([first[None], rows[sizes > RANK_TOLERANCE]])


def _learned_log_sigma(scheduler: ForeignScheduler, trace: Trace) -> np.ndarray:
    """(k0, k1) of each step's noise exp(k0 + k1 v), from traces at v = -1, 0 and 1. [N, 2]"""
    n = len(trace.timestep)
    size = [np.abs([seen[i + 1, 1 + n + i] for i in range(n)]) for seen in (
        _trace(scheduler, -1.0).seen, trace.seen, _trace(scheduler, 1.0).seen)]  # fmt: skip
    noisy = np.all([s > 0 for s in size], axis=0)
    low, middle, high = (np.log(np.where(noisy, s, 1.0)) for s in size)
    if np.abs(low + high - 2 * middle).max() > PROOF_TOLERANCE:
        raise ProgramError(f"{scheduler.name}: the size of its noise is not exp(k0 + k1 v) of the learned variance v")
    return np.stack([middle, (high - low) / 2], axis=1)


def _prove(scheduler: ForeignScheduler, program: Program) -> None:
    """Both on the same random histories, which clamp where the scheduler clips. Raises ProgramError where they part."""
    random = np.random.default_rng(SEED)
    n = program.steps
    z, wanted, noise, v = (
        random.standard_normal(shape) for shape in ((HISTORIES,), (n, HISTORIES), (n, HISTORIES), (n,))
    )
    wanted *= 2 * min(program.x0_bound, 1.0)
    state = np.zeros((program.slots, HISTORIES))
    state[0] = program.init[1] * z
    ours, predictions = [state[0]], []
    for i, (a, b) in enumerate(program.x0_from):
        predictions.append((wanted[i] - a * state[0]) / b)
        x0 = np.clip(a * state[0] + b * predictions[i], -program.x0_bound, program.x0_bound)
        sigma = np.exp(program.log_sigma[i] @ [1.0, v[i]])
        state = program.mix[i] @ np.stack([*state, x0, sigma * noise[i]])
        ours.append(state[0])
    theirs = scheduler.run(lambda step: predictions[step.index], z, lambda i: noise[i], lambda i: v[i])
    scale = np.maximum(1.0, np.abs(theirs).max())
    error = np.abs(np.array(ours) - theirs).max(axis=1) / scale
    if error.max() <= PROOF_TOLERANCE:
        return
    step = int(np.argmax(error > PROOF_TOLERANCE))
    reason = "its step is not linear in the sample, the x0 estimates and the noise"
    if program.x0_bound < NO_BOUND:
        reason = (
            "clip_sample clamps something else than the x0 estimate alone, or goes on with the unclamped prediction"
        )
    raise ProgramError(f"{scheduler.name}: {reason} (random histories part by {error.max():.1e} from step {step} on)")
