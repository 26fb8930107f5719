"""Programs: a sampler as a table of small matrices, computed once in float64 (docs/format.md).

A step of any linear sampler is numbers: how the network's answer is read (x0_from, log_sigma), and how much of a slot,
of x0 and of noise goes into a new slot (mix). docs/format.md has the formula; `samplers/` makes the numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ProgramError
from ..fields import MAX_NUMBER
from ..files import write_text
from ..json_files import parse_json, read_bounded, validated
from .process import ProcessInfo
from .schedule import MAX_STEPS

PROGRAM_VERSION = 2
MAX_PROGRAM_BYTES = 16 << 20  # 1,000 steps of 20 slots, and 100,000 betas, are 12 MB
MAX_SLOTS = 64
RANKS = {"timestep": 1, "x0_from": 2, "log_sigma": 2, "mix": 3, "guidance": 1}
STEP_GRAPH = "step"
NO_BOUND = 3.0e38  # an x0_bound that never clamps a float32


@dataclass(frozen=True)
class Program:
    """A sampler as data: N steps, K state slots. All arrays are float64."""

    name: str
    timestep: np.ndarray  # [N] what the network is told
    x0_from: np.ndarray  # [N, 2]
    log_sigma: np.ndarray  # [N, 2]
    mix: np.ndarray  # [N, K, K + 2]
    guidance: np.ndarray  # [N] how much of the guidance asked for: 1 all, 0 none (one evaluation instead of two)
    x0_bound: float = NO_BOUND
    init: tuple[float, float] = (
        0.0,
        1.0,
    )  # slot 0 starts as init[0] given latent + init[1] unit noise, the others at 0
    interval: np.ndarray | None = None  # [N] how far a step goes, in timesteps; None: the network is not told
    graph: tuple[str, ...] | None = None  # [N] which step graph a step runs; None: all run "step"
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

    def graph_of(self, step: int) -> str:
        """The name of the step graph that this step runs."""
        return self.graph[step] if self.graph is not None else STEP_GRAPH


def is_step_graph(name: str) -> bool:
    """Whether a bundle's graph of this name is a step graph: "step", or "step-" and a name of its own."""
    return name == STEP_GRAPH or name.startswith(f"{STEP_GRAPH}-")


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
    some = {} if program.graph is None else {"graph": list(program.graph)}
    some |= {} if program.interval is None else {"interval": program.interval.tolist()}
    text = json.dumps(
        some
        | {
            "version": PROGRAM_VERSION,
            "name": program.name,
            "made": program.made,
            "process": program.process.model_dump() if program.process is not None else None,
            "init": list(program.init),
            "x0_bound": program.x0_bound,
            "timestep": program.timestep.tolist(),
            "x0_from": program.x0_from.tolist(),
            "log_sigma": program.log_sigma.tolist(),
            "mix": program.mix.tolist(),
            "guidance": program.guidance.tolist(),
        }
    )
    write_text(path, text + "\n")


def read_program(path: Path) -> Program:
    """JSON -> Program, checked. Raises ProgramError naming the file and the field."""
    return program_from_json(read_bounded(path, MAX_PROGRAM_BYTES, ProgramError), path)


def program_from_json(raw: bytes, path: Path) -> Program:
    """`read_program` of what is in memory; `path` is only for the message."""
    data = parse_json(raw, path, ProgramError)
    version = data.get("version") if isinstance(data, dict) else None
    if type(version) is not int or version != PROGRAM_VERSION:  # true and 1.0 equal 1
        raise ProgramError(
            f"{path}: program version is not {PROGRAM_VERSION}: make it again, or export its bundle again"
        )
    process = data.get("process")
    if process is not None:
        process = validated(ProcessInfo, process, path, ProgramError, field="process")
    try:
        program = Program(
            name=_typed(data, "name", str),
            made=_typed(data, "made", dict),
            process=process,
            graph=_graphs(data),
            interval=None if data.get("interval") is None else _numbers(data, "interval", 1),
            init=tuple(_numbers(data, "init", 1).tolist()),
            x0_bound=float(_numbers(data, "x0_bound", 0)),
            **{key: _numbers(data, key, rank) for key, rank in RANKS.items()},
        )
        check_program(program)
    except KeyError as error:
        raise ProgramError(f"{path}: field {error} is missing") from None
    except ProgramError as error:
        raise ProgramError(f"{path}: {error}") from None
    return program


def _typed(data: dict[str, Any], key: str, kind: type) -> Any:
    if not isinstance(data[key], kind):
        raise ProgramError(f"{key} is not {'a text' if kind is str else 'an object'}")
    return data[key]


def _graphs(data: dict[str, Any]) -> tuple[str, ...] | None:
    names = data.get("graph")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) and is_step_graph(name) for name in names):
        raise ProgramError(f"graph is not a list of names of step graphs: '{STEP_GRAPH}' or '{STEP_GRAPH}-...'")
    return tuple(names)


def _numbers(data: dict[str, Any], key: str, rank: int) -> np.ndarray:
    """data[key], lists in lists, as a float64 array of that rank. A text, true or null is no number."""
    flat = [data[key]]
    for _ in range(rank):
        if not all(isinstance(part, list) for part in flat):
            raise ProgramError(f"{key} is not a list of rank {rank}")
        flat = list(chain.from_iterable(flat))
    if not set(map(type, flat)) <= {int, float}:
        raise ProgramError(f"{key} holds something else than numbers")
    try:
        return np.array(data[key], dtype=np.float64)
    except ValueError:  # numpy says a page about it
        raise ProgramError(f"{key} has rows of different lengths") from None


def check_program(program: Program) -> None:
    """Shapes fit each other and every number is one of float32. Raises ProgramError naming the field."""
    n = len(program.timestep) if program.timestep.ndim == 1 else 0
    if not 1 <= n <= MAX_STEPS:
        raise ProgramError(f"timestep must be a list of 1 to {MAX_STEPS} numbers")
    slots = program.mix.shape[1] if program.mix.ndim == 3 else 0
    if slots > MAX_SLOTS:
        raise ProgramError(f"mix has {slots} slots, at most {MAX_SLOTS} are possible")
    matrices = (n, max(slots, 1), max(slots, 1) + 2)
    shapes = {"x0_from": (n, 2), "log_sigma": (n, 2), "mix": matrices, "guidance": (n,), "init": (2,)}
    shapes |= {} if program.interval is None else {"interval": (n,)}
    for name, shape in shapes.items():
        if np.shape(getattr(program, name)) != shape:
            raise ProgramError(f"{name} has shape {np.shape(getattr(program, name))}, expected {shape}")
    if program.graph is not None and len(program.graph) != n:
        raise ProgramError(f"graph has {len(program.graph)} names, expected {n}")
    for name in ("timestep", *shapes):
        if not np.all(np.abs(getattr(program, name)) <= MAX_NUMBER):  # NaN is not, either
            raise ProgramError(f"{name} has a number that is not finite, or not within +-{MAX_NUMBER:g}")
    if program.guidance.min() < 0:
        raise ProgramError(f"guidance has {program.guidance.min():g}, and a factor is not negative: 0 is no guidance")
    if not 0 < program.x0_bound <= NO_BOUND:
        raise ProgramError(f"x0_bound {program.x0_bound} is not in (0, {NO_BOUND}]")
