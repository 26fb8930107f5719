"""What the graphs are given: those of a real step, from a golden trajectory, or else of the default program."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...runtime.bundle.open import Bundle
from ...runtime.errors import Cancelled, RequestError
from ...runtime.loop.engine import Engine, Tensors, WatchedEngine
from ...runtime.loop.loop import StepEvent, first_state
from ...runtime.loop.noise import GivenNoise, NoiseSource, SeededNoise
from ...runtime.loop.session import Session
from ...runtime.loop.tables import StepTables
from ...runtime.loop.verify import golden_prompts, read_golden
from ...runtime.report import Report
from ..graph.emulation import emulated_engine
from ..pool import Pool, any_pool

Arrays = dict[str, np.ndarray]
PREPARING = ("conditioner", "context")  # graphs that make what the step reads: each bundle's own are asked


@dataclass(frozen=True)
class RealStep:
    """One step of a program, in words, and what it is made of."""

    what: str  # "step 5 of 10 of golden trajectory ddpm-10, timestep 444, guidance 4"
    graph: str  # "step"
    row: int
    tables: StepTables
    state: np.ndarray  # [B, K, C, H, W] float32
    noise: np.ndarray  # [B, C, H, W] float32

    @property
    def latents(self) -> np.ndarray:
        """[B, C, H, W] float32, what this step started from."""
        return np.ascontiguousarray(self.state[:, 0])


def letters_of(bundle: Bundle, arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The manifest's letters for variable dimensions -> what they are in these inputs."""
    found: dict[str, int] = {}
    for graph in bundle.manifest.graphs.values():
        for tensor in graph.inputs:
            sizes = arrays[tensor.name].shape if tensor.name in arrays else ()
            named = zip(tensor.shape, sizes, strict=False)
            found |= {letter: size for letter, size in named if isinstance(letter, str) and letter.isalpha()}
    return found


def inputs_of(bundle: Bundle, step: RealStep, scratch: Path) -> Arrays:
    """All that any graph of `bundle` reads at this step, by its own conditioner and context; nodes in 16 bit round.

    scratch: a folder for temporary files.
    """
    engines = {
        name: _Kept(emulated_engine(bundle.graph_file(name), scratch))
        for name in PREPARING
        if name in bundle.manifest.graphs
    }
    with Session(bundle, engines=engines) as session:
        read = session.step_inputs(step.tables, step.row, step.state, step.noise)
        kept = {name: values for engine in engines.values() for name, values in engine.last.items()}
    return {**kept, **read, "latent": step.latents}


class _Kept(WatchedEngine):
    """An engine that keeps the inputs of its latest run."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.last = Arrays()

    @contextmanager
    def around(self, inputs: Tensors, outputs: Tensors) -> Iterator[tuple[Tensors, Tensors]]:
        self.last = {name: values.copy() for name, values in inputs.items() if name in self.inputs}
        yield inputs, outputs


def real_step(bundle: Bundle, number: int | None, report: Report) -> RealStep:
    """Step `number`, from 1, of the first golden trajectory that is here; without any, of the default program.

    The state before it is what `bundle` computes on the CPU. Raises RequestError for a step that there is not.
    """
    golden = next((some for some in bundle.manifest.golden if bundle.has(some.file)), None)
    program = bundle.program(golden.program if golden is not None else None)
    number = (program.steps + 1) // 2 if number is None else number
    if number > program.steps:
        raise RequestError(f"--step {number}: program '{program.name}' has steps 1 to {program.steps}")
    noise: NoiseSource
    pool = any_pool(bundle)
    if golden is not None:
        tensors = read_golden(bundle, golden, program.steps)
        noise = GivenNoise(tensors["z"], tensors["noise"])
        pool = _pool_of_golden(bundle, pool, tensors)
    else:
        noise = SeededNoise([0], bundle.manifest.model.latent_shape)
    subjects = pool.of if golden is not None else pool.of[:1]
    guidance = golden.guidance if golden is not None else bundle.manifest.defaults.guidance
    state, stop = first_state(program, noise), threading.Event()

    def on_step(event: StepEvent) -> None:
        nonlocal state
        report("sampling up to the step", event.step, number - 1)
        if event.step == number - 1:
            state = event.state.copy()
            stop.set()

    if number > 1:
        with Session(bundle) as session:
            try:
                pool.latents(session, program, subjects, guidance, noise, on_step, stop)
            except Cancelled:
                pass  # by us, in time
    tables, row = pool.tables(bundle, program, subjects, guidance), number - 1
    drawn = noise.step(row) if program.draws_noise(row) else np.zeros_like(state[:, 0])
    source = "golden trajectory" if golden is not None else "program"
    what = (
        f"step {number} of {program.steps} of {source} {program.name}, timestep {program.timestep[row]:g}, "
        f"guidance {guidance:g}"
    )
    return RealStep(what, program.graph_of(row), row, tables, state, np.ascontiguousarray(drawn))


def _pool_of_golden(bundle: Bundle, pool: Pool, tensors: Mapping[str, np.ndarray]) -> Pool:
    """The images of a golden trajectory, in order."""
    if bundle.manifest.text is None:
        return Pool(tuple(tensors["y"].tolist()))
    of, away_from = golden_prompts(bundle)
    return Pool(tuple(of), away_from, pool.size)
