"""Images that are sampled step by step, each at its own pace: `advance` takes one step of all given ones in a batch.

They may differ in program, step, guidance, class or prompts, size and seed, because tables belong to one image. Each
becomes the picture that it becomes alone. Those of one size with as many slots share a call of the step graph: slots
that are empty would let all of a size share one, but a sum over more terms rounds its last bit differently, zeros or
not (ONNX Runtime, one slot among four).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from ..errors import Cancelled, RequestError
from ..samplers.program import Program
from .conditions import PROMPT, count, of_steps, with_vectors
from .engine import Engine
from .loop import first_state
from .noise import NoiseSource
from .tables import ImageTables, gather
from .text_graphs import TextGraphs

MODULATION_BYTES = 8 << 20  # adaLN rows that an image holds: those of its next steps; a row of DiT-XL is 0.8 MB


class ImageRun:
    """One image on its way through a program (`Session.start`)."""

    def __init__(
        self, program: Program, tables: ImageTables, noise: NoiseSource, given: np.ndarray | None = None
    ) -> None:
        """noise: of one image. given: the latent [1, C, H, W] to start from, where the program does."""
        self.program, self.tables, self.noise = program, tables, noise
        self.step = 0  # steps done
        self.state = first_state(program, noise, given)[0]  # [K, C, H, W]
        self.contexts: dict[str, dict[str, np.ndarray]] = {}  # of its prompts, by their keys, once it is prepared
        self._modulation = np.empty((0, count(tables.conditions), 0), np.float32)  # [steps, R, M]
        self._modulation_from = 0  # the step of its first row

    @property
    def done(self) -> bool:
        return self.step == self.program.steps

    @property
    def latent(self) -> np.ndarray:
        """[C, H, W] float32, a copy: where the image is now; the sample when it is done."""
        return self.state[0].copy()

    def modulation(self) -> np.ndarray | None:
        """The adaLN rows [R, M] of the next step, or None when they are still to be computed."""
        held = self.step - self._modulation_from
        return self._modulation[held] if held < len(self._modulation) else None

    def steps_to_modulate(self, width: int) -> int:
        """For how many steps rows of `width` numbers are worth computing at once."""
        fit = MODULATION_BYTES // (4 * width * count(self.tables.conditions))
        return max(1, min(self.program.steps - self.step, fit))

    def set_modulation(self, rows: np.ndarray) -> None:
        """rows [steps, R, M], from the next step on."""
        self._modulation, self._modulation_from = rows, self.step

    def release(self) -> None:
        """Frees what its further steps would read: there will be none. State and latent stay."""
        self.contexts = {}
        self.set_modulation(self._modulation[:0].copy())

    def drawn(self) -> np.ndarray | None:
        """The next step's noise [C, H, W], or None where it adds none."""
        return self.noise.step(self.step)[0] if self.program.draws_noise(self.step) else None


def prepare(text: TextGraphs, run: ImageRun, cancel: threading.Event | None = None) -> None:
    """What steps read of its prompts. Raises Cancelled, RequestError."""
    run.contexts = {prompt.key: text.context(prompt, cancel) for prompt in run.tables.prompts}


def is_prepared(text: TextGraphs, run: ImageRun) -> bool:
    """Whether nothing is to be encoded for it: there are no prompts, or they were used before."""
    found = {prompt.key: text.known(prompt) for prompt in run.tables.prompts}
    known = {key: context for key, context in found.items() if context is not None}
    if len(known) == len(found):
        run.contexts.update(known)
    return len(known) == len(found)


def advance(
    engine: Callable[[str], Engine],
    text: TextGraphs,
    runs: Sequence[ImageRun],
    width: int,
    cancel: threading.Event | None = None,
    a_call: int | None = None,
) -> None:
    """One step of every run that is not done. width: M. a_call: images that a call of the step graph takes at most.

    Raises Cancelled; RequestError for a run given twice.
    """
    if len({id(run) for run in runs}) < len(runs):
        raise RequestError("the same image is given twice: each takes one step at a time")
    if cancel is not None and cancel.is_set():
        raise Cancelled(f"stopped before the next step of {len(runs)} image(s)")
    moving = [run for run in runs if not run.done]
    for run in moving:
        if run.tables.prompts and not run.contexts:
            prepare(text, run, cancel)
    _modulate(engine("conditioner"), [run for run in moving if run.modulation() is None], width, cancel)
    together: dict[tuple[str, tuple[int, ...]], list[ImageRun]] = {}
    for run in moving:
        together.setdefault((run.program.graph_of(run.step), run.state.shape), []).append(run)
    for (graph, _), some in together.items():
        for first in range(0, len(some), a_call or len(some)):
            _step(engine(graph), text, some[first : first + (a_call or len(some))], width, cancel)


def _modulate(engine: Engine, runs: Sequence[ImageRun], width: int, cancel: threading.Event | None) -> None:
    """The adaLN rows of the next steps of each, in one call of the conditioner."""
    if not runs:
        return
    steps = [run.steps_to_modulate(width) for run in runs]
    parts = [
        with_vectors(of_steps(run.tables.conditions, run.step, run.step + some), _vectors(run))
        for run, some in zip(runs, steps, strict=True)
    ]
    sizes = [some * count(run.tables.conditions) for run, some in zip(runs, steps, strict=True)]
    rows = np.empty((sum(sizes), width), dtype=np.float32)
    engine.run(
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, {"modulation": rows}, cancel
    )
    for run, some, own in zip(runs, steps, np.split(rows, np.cumsum(sizes)[:-1]), strict=True):
        run.set_modulation(own.reshape(some, -1, width))


def _vectors(run: ImageRun) -> np.ndarray | None:
    """[R, Q] of the image's own prompts, where the conditioner reads them."""
    if PROMPT not in run.tables.conditions:
        return None
    return np.concatenate([run.contexts[prompt.key]["vector"] for prompt in run.tables.prompts])


def _step(
    engine: Engine, text: TextGraphs, runs: Sequence[ImageRun], width: int, cancel: threading.Event | None
) -> None:
    """Of images with as many slots and one size."""
    tables = gather([run.tables.at(run.step) for run in runs])
    latent = runs[0].state.shape[1:]
    contexts = {key: own for run in runs for key, own in run.contexts.items()}
    told = text.joined(tables.prompts, lambda prompt: contexts[prompt.key], latent[1:])
    told = {name: values for name, values in told.items() if name != "vector"}  # the rows of modulation have it
    state = np.stack([run.state for run in runs])
    noise, next_state = np.zeros((len(runs), *latent), dtype=np.float32), np.empty_like(state)
    modulation = np.empty((tables.rows, width), dtype=np.float32)
    for b, run in enumerate(runs):
        modulation[tables.rows_of[b]] = run.modulation()
        drawn = run.drawn()
        if drawn is not None:
            noise[b] = drawn
    inputs = {"state": state, "modulation": modulation, "noise": noise, **tables.inputs(0), **told}
    engine.run(inputs, {"next_state": next_state}, cancel)
    for b, run in enumerate(runs):
        run.state = next_state[b].copy()
        run.step += 1
