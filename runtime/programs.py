"""Programs: a sampler as a table of small matrices, computed once in float64 (docs/format.md).

A step of any linear sampler is, for one sample with slots s_0 .. s_{K-1} (s_0 is what the network sees),

    x0    = clamp(a s_0 + b pred, +-x0_bound)      (a, b) = x0_from
    sigma = exp(k0 + k1 v)                         (k0, k1) = log_sigma, v the network's variance channels
    s'    = mix @ [s_0, .., s_{K-1}, x0, sigma * noise]

so a sampler is nothing but the numbers a, b, k0, k1 and mix, one row per step. `samplers/` makes them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from .errors import ProgramError
from .files import write_text
from .process import ProcessInfo

PROGRAM_VERSION = 1
MAX_PROGRAM_BYTES = 64 << 20  # 1,000 steps of 20 slots, and 100,000 betas, are 12 MB
NO_BOUND = 3.0e38  # an x0_bound that never clamps a float32


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
    process: ProcessInfo | None = None  # what it was made for; None: not known

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


def with_x0_slot(program: Program) -> Program:
    """The same sampler with one more state slot, the last, in which every step leaves its x0 estimate.

    It costs no evaluation. No other row has a weight in its column, so the other slots are what they were, but for the
    last bit of a float32: a matrix of another size may be summed in another order, as with another batch size.
    """
    steps, slots = program.steps, program.slots
    mix = np.zeros((steps, slots + 1, slots + 3))
    mix[:, :slots, :slots], mix[:, :slots, slots + 1 :] = program.mix[:, :, :slots], program.mix[:, :, slots:]
    mix[:, slots, slots + 1] = 1.0
    return replace(program, mix=mix)


def write_program(program: Program, path: Path) -> None:
    """Program -> JSON (docs/format.md). Numbers keep full float64 precision."""
    text = json.dumps(
        {
            "version": PROGRAM_VERSION,
            "name": program.name,
            "made": program.made,
            "process": program.process.model_dump() if program.process is not None else None,
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
        if path.stat().st_size > MAX_PROGRAM_BYTES:
            raise ProgramError(f"{path}: larger than {MAX_PROGRAM_BYTES >> 20} MB, not a program")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise ProgramError(f"{path}: not a readable program ({error})") from None
    if not isinstance(data, dict) or data.get("version") != PROGRAM_VERSION:
        raise ProgramError(f"{path}: program version is not {PROGRAM_VERSION}; made by another release of ditedge?")
    try:
        program = Program(
            name=str(data["name"]),
            made=dict(data["made"]),
            process=None if data.get("process") is None else ProcessInfo.model_validate(data["process"]),
            init_scale=float(data["init_scale"]),
            x0_bound=float(data["x0_bound"]),
            guided=np.array(data["guided"], dtype=bool),
            **{key: np.array(data[key], dtype=np.float64) for key in ("timestep", "x0_from", "log_sigma", "mix")},
        )
        check_program(program)
    except KeyError as error:
        raise ProgramError(f"{path}: field {error} is missing") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["process", *map(str, first["loc"])])
        raise ProgramError(f"{path}: {place}: {first['msg']}") from None
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
