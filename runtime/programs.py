"""Programs: a sampler as a table of small matrices, computed once in float64 (DESIGN, "Programs").

A step of any linear sampler is, for one sample with slots s_0 .. s_{K-1} (s_0 is what the network sees),

    x0    = clamp(a s_0 + b pred, +-x0_bound)      (a, b) = x0_from
    sigma = exp(k0 + k1 v)                         (k0, k1) = log_sigma, v the network's variance channels
    s'    = mix @ [s_0, .., s_{K-1}, x0, sigma * noise]

so a sampler is nothing but the numbers a, b, k0, k1 and mix, one row per step. A new sampler is one short function.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ProgramError
from .files import write_text
from .schedule import Schedule, respaced_timesteps

PROGRAM_VERSION = 1
NO_BOUND = 3.0e38  # an x0_bound that never clamps a float32
VARIANCES = ("learned", "fixed-small", "fixed-large")
PREDICTIONS = ("epsilon", "x0")
SAMPLERS = ("ddpm", "ddim")


@dataclass(frozen=True)
class Program:
    """A sampler as data: N steps, K state slots. All arrays are float64 but `guided`."""

    name: str
    timestep: np.ndarray  # [N] what the network is told
    x0_from: np.ndarray  # [N, 2]
    log_sigma: np.ndarray  # [N, 2]
    mix: np.ndarray  # [N, K, K + 2]
    guided: np.ndarray  # [N] bool: evaluate with and without the label
    x0_bound: float = NO_BOUND
    init_scale: float = 1.0  # slot 0 starts as init_scale times unit noise, the other slots at 0
    made: dict[str, Any] = field(default_factory=dict)  # the settings it was made from

    @property
    def steps(self) -> int:
        """N: network steps."""
        return len(self.timestep)

    @property
    def slots(self) -> int:
        """K: latents of state per sample."""
        return self.mix.shape[1]

    def draws_noise(self, step: int) -> bool:
        """Whether this step adds noise: its mix has a non-zero noise column."""
        return bool(np.any(self.mix[step, :, -1]))


def program_ddpm(
    schedule: Schedule, timesteps: np.ndarray, *, variance: str = "learned", prediction: str = "epsilon"
) -> Program:
    """Ancestral sampling of DDPM (Ho et al. 2020, algorithm 2) on respaced betas.

    variance: "learned" interpolates log variances with the network's v (Nichol & Dhariwal 2021, eq. 15);
    "fixed-small" is the posterior variance, "fixed-large" beta. timesteps [N] falling.
    """
    if variance not in VARIANCES:
        raise ProgramError(f"variance '{variance}' is not one of {', '.join(VARIANCES)}")
    abar, previous = _alphas(schedule, timesteps)
    beta = 1 - abar / previous
    posterior = beta * (1 - previous) / (1 - abar)
    floor = posterior[-2] if len(posterior) > 1 else beta[-1]  # the last step's posterior is 0: use its neighbour's
    log_posterior = np.log(np.append(posterior[:-1], floor))
    if variance == "learned":
        low, high = log_posterior, np.log(beta)
        log_sigma = np.stack([(high + low) / 4, (high - low) / 4], axis=1)
    else:
        log_variance = log_posterior if variance == "fixed-small" else np.log(np.append(beta[:-1], floor))
        log_sigma = np.stack([log_variance / 2, np.zeros_like(log_variance)], axis=1)
    mix = np.zeros((len(timesteps), 1, 3))
    mix[:, 0, 0] = (1 - previous) * np.sqrt(abar / previous) / (1 - abar)
    mix[:, 0, 1] = beta * np.sqrt(previous) / (1 - abar)
    mix[:-1, 0, 2] = 1.0  # no noise at the last step
    return _first_order("ddpm", timesteps, abar, prediction, log_sigma, mix)


def program_ddim(
    schedule: Schedule, timesteps: np.ndarray, *, eta: float = 0.0, prediction: str = "epsilon"
) -> Program:
    """DDIM (Song et al. 2021, eq. 12); epsilon is derived again from the (clipped) x0. eta 0 is deterministic."""
    if not (math.isfinite(eta) and eta >= 0):
        raise ProgramError(f"eta {eta} is not a finite number of at least 0")
    abar, previous = _alphas(schedule, timesteps)
    sigma = eta * np.sqrt((1 - previous) / (1 - abar)) * np.sqrt(1 - abar / previous)
    direction = 1 - previous - sigma**2
    if np.any(direction < -1e-12):
        raise ProgramError(f"eta {eta} asks for more noise than a step has: use a value of at most 1")
    epsilon_weight = np.sqrt(np.maximum(direction, 0))
    mix = np.zeros((len(timesteps), 1, 3))
    mix[:, 0, 0] = epsilon_weight / np.sqrt(1 - abar)
    mix[:, 0, 1] = np.sqrt(previous) - epsilon_weight * np.sqrt(abar / (1 - abar))
    noisy = sigma > 0
    noisy[-1] = False
    mix[:, 0, 2] = noisy
    log_sigma = np.zeros((len(timesteps), 2))
    log_sigma[noisy, 0] = np.log(sigma[noisy])
    return _first_order("ddim", timesteps, abar, prediction, log_sigma, mix)


def x0_coefficients(alphas_cumprod: np.ndarray, prediction: str) -> np.ndarray:
    """(a, b) with x0 = a x + b pred, [N, 2]: the only place that knows what the network predicts."""
    if prediction == "epsilon":
        return np.stack([np.sqrt(1 / alphas_cumprod), -np.sqrt(1 / alphas_cumprod - 1)], axis=1)
    if prediction == "x0":
        return np.stack([np.zeros_like(alphas_cumprod), np.ones_like(alphas_cumprod)], axis=1)
    raise ProgramError(f"prediction '{prediction}' is not one of {', '.join(PREDICTIONS)}")


def make_program(
    schedule: Schedule,
    *,
    sampler: str,
    respacing: str,
    learned_variance: bool,
    prediction: str = "epsilon",
    variance: str | None = None,
    eta: float = 0.0,
    clip_x0: bool = False,
) -> Program:
    """A program from the settings of a command line. Raises ProgramError naming the setting that does not fit.

    respacing: see `respaced_timesteps`. variance: None is the reference's default: learned when the model learned it,
    else fixed-large. clip_x0: clamp the x0 estimate to [-1, 1].
    """
    timesteps = respaced_timesteps(respacing, schedule.steps)
    made: dict[str, Any] = {"sampler": sampler, "respacing": respacing, "clip_x0": clip_x0, "prediction": prediction}
    if sampler == "ddpm":
        if variance == "learned" and not learned_variance:
            raise ProgramError("variance 'learned': this model did not learn one; use fixed-small or fixed-large")
        variance = variance or ("learned" if learned_variance else "fixed-large")
        program = program_ddpm(schedule, timesteps, variance=variance, prediction=prediction)
        made["variance"] = variance
    elif sampler == "ddim":
        program = program_ddim(schedule, timesteps, eta=eta, prediction=prediction)
        made["eta"] = eta
    else:
        raise ProgramError(f"sampler '{sampler}' is not one of {', '.join(SAMPLERS)}")
    return Program(
        name=f"{sampler}-{respacing.removeprefix('ddim')}",
        timestep=program.timestep,
        x0_from=program.x0_from,
        log_sigma=program.log_sigma,
        mix=program.mix,
        guided=program.guided,
        x0_bound=1.0 if clip_x0 else NO_BOUND,
        made=made,
    )


def _alphas(schedule: Schedule, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """abar at each step, and at the step it leads to (1 after the last)."""
    abar = schedule.alphas_cumprod[timesteps]
    return abar, np.append(abar[1:], 1.0)


def _first_order(
    name: str, timesteps: np.ndarray, abar: np.ndarray, prediction: str, log_sigma: np.ndarray, mix: np.ndarray
) -> Program:
    return Program(
        name=name,
        timestep=timesteps.astype(np.float64),
        x0_from=x0_coefficients(abar, prediction),
        log_sigma=log_sigma,
        mix=mix,
        guided=np.ones(len(timesteps), dtype=bool),
    )


def write_program(program: Program, path: Path) -> None:
    """Program -> JSON (docs/format.md). Numbers keep full float64 precision."""
    text = json.dumps(
        {
            "version": PROGRAM_VERSION,
            "name": program.name,
            "made": program.made,
            "init_scale": program.init_scale,
            "x0_bound": program.x0_bound,
            "timestep": program.timestep.tolist(),
            "x0_from": program.x0_from.tolist(),
            "log_sigma": program.log_sigma.tolist(),
            "mix": program.mix.tolist(),
            "guided": program.guided.tolist(),
        }
    )
    write_text(path, text + "\n")


def read_program(path: Path) -> Program:
    """JSON -> Program, checked. Raises ProgramError naming the file and the field."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProgramError(f"{path}: not a readable program ({error})") from None
    if not isinstance(data, dict) or data.get("version") != PROGRAM_VERSION:
        raise ProgramError(f"{path}: program version is not {PROGRAM_VERSION}; made by another release of ditedge?")
    try:
        program = Program(
            name=str(data["name"]),
            made=dict(data["made"]),
            init_scale=float(data["init_scale"]),
            x0_bound=float(data["x0_bound"]),
            guided=np.array(data["guided"], dtype=bool),
            **{key: np.array(data[key], dtype=np.float64) for key in ("timestep", "x0_from", "log_sigma", "mix")},
        )
        check_program(program)
    except KeyError as error:
        raise ProgramError(f"{path}: field {error} is missing") from None
    except (TypeError, ValueError, ProgramError) as error:
        raise ProgramError(f"{path}: {error}") from None
    return program


def check_program(program: Program) -> None:
    """Shapes fit each other and every number is finite. Raises ProgramError naming the field."""
    n = len(program.timestep) if program.timestep.ndim == 1 else 0
    if n < 1:
        raise ProgramError("timestep must be a list of at least one number")
    slots = program.mix.shape[1] if program.mix.ndim == 3 else 0
    shapes = {"x0_from": (n, 2), "log_sigma": (n, 2), "mix": (n, max(slots, 1), max(slots, 1) + 2), "guided": (n,)}
    for name, shape in shapes.items():
        if getattr(program, name).shape != shape:
            raise ProgramError(f"{name} has shape {getattr(program, name).shape}, expected {shape}")
    for name in ("timestep", "x0_from", "log_sigma", "mix", "init_scale"):
        if not np.all(np.isfinite(getattr(program, name))):
            raise ProgramError(f"{name} has a number that is not finite")
    if not 0 < program.x0_bound <= NO_BOUND:
        raise ProgramError(f"x0_bound {program.x0_bound} is not in (0, {NO_BOUND}]")
