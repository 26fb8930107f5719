"""A bundle on an engine as a contender: its graphs one by one, all inputs ready, and the loop around them."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.open import Bundle, open_bundle
from ..bundle.sizes import latent_of
from ..errors import BundleError, DitedgeError
from ..loop.engine import Engine, EngineOptions, Tensors, WatchedEngine, options_for
from ..loop.host_loop import HostLoop
from ..loop.loop import first_state
from ..loop.noise import SeededNoise
from ..loop.session import Session
from ..loop.subjects import any_subject, told_besides
from ..loop.tables import StepTables, Subject, step_tables
from ..loop.text_graphs import TextGraphs
from ..samplers.program import Program
from .turns import Made, Part, isolated, serve

PARTS = ("conditioner", "context", "step", "decoder", "loop")
LOOP_STEPS = 4  # of the program in which the loop around the engine is timed


@dataclass(frozen=True)
class Wanted:
    """What is timed. parts: of `PARTS`, those that the bundle has.

    drift_steps, drift_file: of a program that is sampled once before, and where to keep its latents; 0 is none.
    """

    batch: int = 1
    guidance: float = 1.0
    parts: tuple[str, ...] = PARTS
    drift_steps: int = 0
    drift_file: str = ""


def bundle_contender(path: Path, options: EngineOptions, wanted: Wanted, sha256: str | None = None) -> list[str]:
    """The command that times a bundle, or a plan in it: one step of its default program, in the middle, and the rest.

    sha256: of the manifest, where the caller has opened the bundle: the process runs no other one.
    """
    settings = {
        "provider": options.provider,
        "threads": options.threads,
        "spin": options.spin,
        "cuda_graphs": options.cuda_graphs,
        "sha256": sha256,
        "wanted": asdict(wanted),
    }
    return isolated("ditedge.runtime.bench.contender", [str(path.absolute()), json.dumps(settings)])


def bundle_parts(path: Path, options: EngineOptions, wanted: Wanted, sha256: str | None = None) -> Made:
    """The wanted parts, ready to be called. Raises DitedgeError.

    sha256: of the manifest that it has to be. Whoever knows it has seen to the signature.
    """
    begun = time.perf_counter()
    bundle = open_bundle(path, trusted_keys=None if sha256 is None else ())
    if sha256 not in (None, bundle.sha256):
        raise BundleError(f"{path} was replaced while its speed was measured: compare again")
    options = options_for(path, options)
    session = _loaded(bundle, options, wanted)
    load_seconds, job, loop = time.perf_counter() - begun, job_of(bundle, wanted.batch, wanted.guidance), session.loop
    if isinstance(loop, HostLoop):
        parts, latents = _host_parts(loop, options, job, wanted)
    else:
        parts, latents = _device_parts(session, job, wanted)
    if wanted.drift_steps:
        np.save(wanted.drift_file, latents(_short(bundle, wanted.drift_steps)))
    return Made(parts, {"evaluations": job.evaluations}, load_seconds)


def _loaded(bundle: Bundle, options: EngineOptions, wanted: Wanted) -> Session:
    """With the graphs that an image is made by, but for text encoders, which are not timed."""
    session = Session(bundle, options)
    for graph in ("context", "position", "conditioner", "step", *(("decoder",) if "decoder" in wanted.parts else ())):
        if graph in bundle.manifest.graphs:
            session.load(graph)
    return session


@dataclass(frozen=True)
class Job:
    """A batch of images that the work is done for."""

    bundle: Bundle
    program: Program
    subjects: list[Subject]
    others: list[Any] | None
    guidance: float
    size: tuple[int, int]

    @property
    def noise(self) -> SeededNoise:
        return SeededNoise(list(range(len(self.subjects))), latent_of(self.bundle, None))

    def tables(self, program: Program) -> StepTables:
        guidance, besides = told_besides(self.bundle, self.guidance, self.size)
        return step_tables(program, self.bundle.manifest.model, self.subjects, guidance, self.others, besides)

    @property
    def evaluations(self) -> int:
        """Of the network in the step that is timed: twice the batch with guidance."""
        tables = self.tables(self.program)
        return len(tables.evaluations[tables.evaluations_of[self.program.steps // 2]].sample)


def job_of(bundle: Bundle, batch: int, guidance: float) -> Job:
    """Of every class in turn, or one prompt of nothing; no text encoder is asked."""
    subject, away_from, size = any_subject(bundle)
    classes = bundle.manifest.model.num_classes
    subjects: list[Subject] = [subject] * batch
    if bundle.manifest.text is None:
        subjects = [i % classes for i in range(batch)]
    others = None if away_from is None else [away_from] * batch
    return Job(bundle, bundle.program(), subjects, others, guidance, size)


def _short(bundle: Bundle, steps: int) -> Program:
    """Of the default program's sampler; the default program where its steps are what it was made for."""
    try:
        return bundle.program(steps=min(steps, bundle.program().steps))
    except DitedgeError:
        return bundle.program()


Latents = Callable[[Program], np.ndarray]


def _host_parts(loop: HostLoop, options: EngineOptions, job: Job, wanted: Wanted) -> tuple[dict[str, Part], Latents]:
    """Every graph's own time."""
    bundle, tables, middle = job.bundle, job.tables(job.program), job.program.steps // 2
    state = first_state(job.program, job.noise)
    calls, engine = _calls_of_step(loop, tables, middle, state, job.noise.step(middle)), loop.engine("step")
    told = loop.text.inputs(tables.prompts, state.shape[3:]) if tables.prompts else {}

    def step() -> None:
        for inputs, outputs in calls:
            engine.run(inputs, outputs)

    parts: dict[str, Part] = {
        "conditioner": lambda: deque(loop.modulations(tables, told.get("vector")), maxlen=0),
        "step": step,
        "loop": lambda: _outside(bundle, options, job, loop),
    }
    if tables.prompts:
        parts["context"] = lambda: TextGraphs(bundle, loop.engine).inputs(tables.prompts, state.shape[3:])
    if "decoder" in loop.engines:
        parts["decoder"] = lambda: loop.images("decoder", state[:, 0])
    latents = lambda program: loop.latents(program, job.tables(program), job.noise)  # noqa: E731
    return {name: parts[name] for name in PARTS if name in parts and name in wanted.parts}, latents


Arrays = dict[str, np.ndarray]


def _calls_of_step(
    loop: HostLoop, tables: StepTables, step: int, state: np.ndarray, noise: np.ndarray
) -> list[tuple[Arrays, Arrays]]:
    """Inputs and outputs of each call that the loop makes in one step: of a large batch there are several."""
    whole, next_state = loop.step_inputs(tables, step, state, noise), np.empty_like(state)
    own = {name: whole.pop(name) for name in ("state", "noise")}
    return [
        ({**whole, **piece.inputs(step), **{name: array[images] for name, array in own.items()}},
         {"next_state": next_state[images]})
        for images, piece in loop.pieces(tables, state.shape[3:])
    ]  # fmt: skip


class _Clocked(WatchedEngine):
    """An engine that counts the seconds in its calls."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.seconds = 0.0

    @contextmanager
    def around(self, inputs: Tensors, outputs: Tensors) -> Iterator[tuple[Tensors, Tensors]]:
        start = time.perf_counter()
        yield inputs, outputs
        self.seconds += time.perf_counter() - start

    def close(self) -> None:
        pass  # it is another loop's


def _outside(bundle: Bundle, options: EngineOptions, job: Job, loop: HostLoop) -> float:
    """Seconds a step that a short run spends outside its engines: noise, tables, buffers, Python."""
    program = _short(bundle, LOOP_STEPS)
    clocked = {name: _Clocked(loop.engine(name)) for name in loop.engines}
    tables, around = job.tables(program), HostLoop(bundle, options, clocked)
    start = time.perf_counter()
    around.latents(program, tables, job.noise)
    whole = time.perf_counter() - start
    return (whole - sum(engine.seconds for engine in clocked.values())) / program.steps


def _device_parts(session: Session, job: Job, wanted: Wanted) -> tuple[dict[str, Part], Latents]:
    """A step as its share of a whole run, all of it enqueued at once: that of the conditioner is in it."""
    bundle = job.bundle

    def latents(program: Program) -> np.ndarray:
        return session.latents(program, job.subjects, job.guidance, job.noise, None, None, job.others, job.size)

    def step() -> float:
        start = time.perf_counter()
        latents(job.program)
        return (time.perf_counter() - start) / job.program.steps

    parts: dict[str, Part] = {"step": step}
    if "decoder" in bundle.manifest.graphs and "decoder" in wanted.parts:
        state = np.ascontiguousarray(job.noise.initial())
        parts["decoder"] = lambda: session.images(state)
    return {name: parts[name] for name in PARTS if name in parts and name in wanted.parts}, latents


def _main() -> None:
    path, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    wanted, sha256 = settings.pop("wanted"), settings.pop("sha256")
    wanted["parts"] = tuple(wanted["parts"])
    serve(lambda: bundle_parts(path, EngineOptions(**settings), Wanted(**wanted), sha256))


if __name__ == "__main__":
    _main()
