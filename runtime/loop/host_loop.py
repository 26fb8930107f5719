"""The sampling loop over a bundle's graphs in ONNX: one call of the engine a step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from ..bundle.manifest import decoded_at_a_time
from ..bundle.open import Bundle
from ..errors import Cancelled, EngineError
from ..samplers.program import Program, is_step_graph
from .conditions import of_steps, with_vectors
from .engine import Engine, EngineOptions
from .engines import open_engine
from .given import blend_of
from .loop import StepEvent, first_state
from .noise import NoiseSource
from .tables import StepTables
from .text_graphs import TextGraphs

MODULATION_BYTES = 64 << 20  # adaLN rows held at a time; a row of DiT-XL is 0.8 MB
CACHED_BYTES = 4 << 20  # of a block's widest numbers that a processor's caches hold (docs/performance.md)


def decode_images(engine: Engine, latents: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """latents [B, C, H, W] float32 -> uint8 [B, *size], a few pictures at a time, so that memory stays bounded."""
    latents = np.ascontiguousarray(latents)
    images = np.empty((len(latents), *size), dtype=np.uint8)
    count = decoded_at_a_time(size[0] * size[1])
    for i in range(0, len(latents), count):
        engine.run({"latent": latents[i : i + count]}, {"image": images[i : i + count]})
    return images


class HostLoop:
    """A `Loop` (loop.py) over engines that are loaded at first use."""

    def __init__(self, bundle: Bundle, options: EngineOptions, engines: Mapping[str, Engine] | None = None) -> None:
        """engines: by graph name, instead of those of the bundle's files; `close` closes them, too."""
        self.bundle = bundle
        self.engines: dict[str, Engine] = dict(engines or {})
        self._options = options
        self.text = TextGraphs(bundle, self.engine)

    def load(self, graph: str) -> None:
        self.engine(graph)

    def engine(self, graph: str) -> Engine:
        """The engine of a graph, loaded at first use."""
        if graph not in self.engines:
            info = self.bundle.manifest.graphs.get(graph)  # type: ignore[call-overload]
            if info is not None and info.precision == "bfloat16" and self._options.provider == "cpu":
                raise EngineError(
                    f"{self.bundle.folder} is in bfloat16, which ONNX Runtime's CPU provider cannot run: "
                    "use another --provider, such as openvino, or a float32 or fp16 bundle"
                )
            # timesteps are one number in bfloat16, and so are shades: only the step is worth rounding
            options = replace(self._options, exact=True) if not is_step_graph(graph) else self._options
            options = replace(options, keep_buffers=False) if graph.startswith(("decoder", "text")) else options
            self.engines[graph] = open_engine(self.bundle.graph(graph), options)
        return self.engines[graph]

    def latents(
        self,
        program: Program,
        tables: StepTables,
        noise: NoiseSource,
        on_step: Callable[[StepEvent], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> np.ndarray:
        state, blend = first_state(program, noise), blend_of(program, noise)
        next_state, silent = np.empty_like(state), np.zeros_like(state[:, 0])
        told = self.text.inputs(tables.prompts, state.shape[3:], cancel)
        vectors, parts = told.pop("vector", None), self.pieces(tables, state.shape[3:])
        for step, modulation in enumerate(self.modulations(tables, vectors, cancel)):
            if cancel is not None and cancel.is_set():
                raise Cancelled(f"stopped before step {step + 1} of {program.steps}")
            drawn = noise.step(step) if program.draws_noise(step) else silent
            for images, own in parts:
                inputs = {"state": state[images], "modulation": modulation, "noise": drawn[images]}
                inputs |= {**own.inputs(step), **told}
                self.engine(program.graph_of(step)).run(inputs, {"next_state": next_state[images]}, cancel)
            if blend is None:
                state, next_state = next_state, state
            else:
                self.engine("blend").run(blend.inputs(step, next_state), {"next_state": state}, cancel)
            if on_step is not None:
                on_step(StepEvent(step + 1, program.steps, state))
        return state[:, 0].copy()

    def pieces(self, tables: StepTables, size: tuple[int, ...]) -> list[tuple[slice, StepTables]]:
        """The batch in pieces, each for one call of the step graph. size: H, W of the latent.

        A processor is full with one image. More share a call while their numbers fit its caches; beyond, each would
        cost a quarter more. An image is the same in any piece.
        """
        count = tables.batch
        if self._options.provider == EngineOptions.provider:
            model = self.bundle.manifest.model
            tokens = size[0] * size[1] // model.patch_size**2
            most = max(len(some.sample) for some in tables.evaluations)
            each = 4 * tokens * model.hidden_size * model.mlp_ratio * most / tables.batch
            count = max(1, int(CACHED_BYTES / each)) if each else count
        pieces = [slice(first, min(first + count, tables.batch)) for first in range(0, tables.batch, count)]
        return [(piece, tables.of_images(piece)) for piece in pieces]

    def step_inputs(
        self, tables: StepTables, step: int, state: np.ndarray, noise: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """All that one step reads: what `latents` binds to it. state [B, K, C, H, W]; noise [B, C, H, W], None is 0."""
        modulation = np.empty((tables.rows, self.bundle.manifest.modulation_width), dtype=np.float32)
        told = self.text.inputs(tables.prompts, state.shape[3:])
        conditions = with_vectors(of_steps(tables.conditions, step, step + 1), told.pop("vector", None))
        self.engine("conditioner").run(conditions, {"modulation": modulation})
        drawn = np.zeros_like(state[:, 0]) if noise is None else np.ascontiguousarray(noise)
        return {"state": state, "modulation": modulation, "noise": drawn, **tables.inputs(step), **told}

    def images(self, graph: str, latents: np.ndarray) -> np.ndarray:
        height, width = latents.shape[2:]
        return decode_images(self.engine(graph), latents, self.bundle.manifest.picture_size(graph, (height, width)))

    def modulations(
        self, tables: StepTables, vectors: np.ndarray | None = None, cancel: threading.Event | None = None
    ) -> Iterator[np.ndarray]:
        """The adaLN rows [R, M] of each step in order, computed a block of steps at a time: memory stays bounded.

        vectors: [P, Q] of the prompts, where the conditioner reads them.
        """
        width, rows = self.bundle.manifest.modulation_width, tables.rows
        block = max(1, min(tables.steps, MODULATION_BYTES // (4 * width * rows)))
        buffer = np.empty((block * rows, width), dtype=np.float32)
        for first in range(0, tables.steps, block):
            last = min(first + block, tables.steps)
            filled = buffer[: (last - first) * rows]
            told = with_vectors(of_steps(tables.conditions, first, last), vectors)
            self.engine("conditioner").run(told, {"modulation": filled}, cancel)
            yield from filled.reshape(last - first, rows, width)

    def close(self) -> None:
        for engine in self.engines.values():
            engine.close()
        self.engines.clear()
