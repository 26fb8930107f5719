"""The steps of a run as they are enqueued: contexts of the step graph, the places that they read, and CUDA graphs.

A graph is a few steps, and holds addresses alone. What differs between steps is copied, on the device, into a few
places before it is launched. So one graph serves every segment of its kind, in every run of a shape, and a program of
1000 steps has as many as one of 10.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np

from ..errors import EngineError
from .device import Device
from .device_memory import Arena, Memory, aligned, offsets_of, size_of
from .device_modulation import Modulation
from .device_prompts import Prompts
from .device_tables import Record, RunShape, Segment, evaluations_record, step_record
from .engine_trt import captured
from .tables import StepTables


class Steps:
    """Contexts, places, two states that take turns, and graphs for runs of one shape."""

    def __init__(
        self,
        device: Device,
        memory: Memory,
        shape: RunShape,
        tables: StepTables,
        modulation: Modulation,
        prompts: Prompts,
    ) -> None:
        self._device, self._gpu, self._modulation = device, device.gpu, modulation
        self._prompts = prompts.addresses
        self.draw_bytes = 4 * shape.batch * int(np.prod(shape.latent))
        self.states = [memory.device(shape.slots * self.draw_bytes) for _ in range(2)]
        step = step_record(tables, 0)
        self._evaluations = {len(some.sample): evaluations_record(some) for some in tables.evaluations}  # by E
        self._step_offsets = offsets_of(step)
        self._sizes = {
            "step": size_of(step),
            "evaluations": max(size_of(record) for record in self._evaluations.values()),
            "modulation": modulation.row_bytes,
            "noise": aligned(self.draw_bytes),
        }
        self._places = {kind: memory.device(shape.places * size) for kind, size in self._sizes.items()}
        made = {"next_state": (shape.batch, shape.slots, *shape.latent)}
        self._contexts = {
            count: device.context("step", self._shapes(shape, step | record) | prompts.shapes, made)
            for count, record in self._evaluations.items()
        }
        self._graphs: dict[tuple[int, int, int], int] = {}  # by kind of segment
        self._enqueued: set[tuple[int, int, int]] = set()  # kinds that ran before
        self._held: dict[tuple[str, int], int] = {}  # what lies at a place already; below 0: noise of zeros

    def _shapes(self, shape: RunShape, tables: Record) -> dict[str, tuple[int, ...]]:
        """Of every input but those of prompts: no shape changes between steps or within a captured graph."""
        state, width = (shape.batch, shape.slots, *shape.latent), self._device.bundle.manifest.modulation_width
        shapes = {"state": state, "modulation": (shape.rows, width), "noise": (shape.batch, *shape.latent)}
        return shapes | {name: array.shape for name, array in tables.items()}

    def begin(self) -> None:
        """Before the first segment of a run: its tables are others."""
        self._held = {}

    def stage(self, segment: Segment, evaluations_of: tuple[int, ...], arena: Arena, drawn: Mapping[int, int]) -> None:
        """Enqueues the copies into the places. drawn: by step that adds noise, where it lies on the host."""
        first, count = segment.first, segment.last - segment.first
        self._copy("step", 0, arena.address(f"step/{first}"), count * self._sizes["step"])
        self._modulation.copy(first, segment.last, self._places["modulation"], arena)
        size = size_of(self._evaluations[segment.evaluations])
        for place in range(count):
            index = evaluations_of[first + place]
            if self._held.get(("evaluations", place)) != index:
                self._held["evaluations", place] = index
                self._copy("evaluations", place, arena.address(f"evaluations/{index}"), size)
            noise = drawn.get(first + place, arena.address("silence"))
            if first + place in drawn or self._held.get(("noise", place)) != -1:
                self._held["noise", place] = 0 if first + place in drawn else -1
                self._copy("noise", place, noise, self.draw_bytes)

    def _copy(self, kind: str, place: int, source: int, size: int) -> None:
        self._gpu.copy(self._places[kind] + place * self._sizes[kind], source, size, self._device.stream)

    def launch(self, segment: Segment) -> None:
        """Enqueues a segment that was staged: plainly the first time of its kind, from the second on as a graph.

        So a graph that would run once is not made, and TensorRT has allocated, which capture forbids.
        """
        kind = segment.graph
        known = kind in self._enqueued
        self._enqueued.add(kind)
        if self._device.graphs and known and (kind in self._graphs or self._capture(segment)):
            self._gpu.launch(self._graphs[kind], self._device.stream)
        else:
            self._enqueue(segment)

    def _capture(self, segment: Segment) -> bool:
        """Whether the segment is a graph now. What cannot be captured is enqueued, from here on, and that is said."""
        graphs: list[int] = []
        try:
            if not self._contexts[segment.evaluations].capturable(self._device.stream):
                raise EngineError("TensorRT says so")
            with captured(self._gpu, self._device.stream, graphs):
                self._enqueue(segment)
        except EngineError as error:
            self._device.graphs = False
            text = "these plans cannot be captured as a CUDA graph: every step is enqueued anew, which is slower"
            warnings.warn(f"{text} ({error})", RuntimeWarning, stacklevel=2)
            return False
        self._graphs[segment.graph] = graphs[0]
        return True

    def _enqueue(self, segment: Segment) -> None:
        context = self._contexts[segment.evaluations]
        inputs = self._device.plans["step"].inputs
        for place, step in enumerate(range(segment.first, segment.last)):
            addresses = self._addresses(place, segment.evaluations)
            addresses["state"] = self.states[step % 2]
            for name, address in addresses.items():
                if name in inputs:
                    context.set_address(name, address)
            context.set_address("next_state", self.states[(step + 1) % 2])
            context.enqueue(self._device.stream)

    def _addresses(self, place: int, evaluations: int) -> dict[str, int]:
        """Input of the step graph -> where it lies at a place."""
        at = {kind: start + place * self._sizes[kind] for kind, start in self._places.items()}
        of_step = {name: at["step"] + offset for name, offset in self._step_offsets.items()}
        weighed = offsets_of(self._evaluations[evaluations])
        return (
            of_step
            | {name: at["evaluations"] + offset for name, offset in weighed.items()}
            | {kind: at[kind] for kind in ("modulation", "noise")}
            | self._prompts
        )

    def close(self) -> None:
        """Only when nothing is enqueued."""
        for graph in self._graphs.values():
            self._gpu.destroy_graph(graph)
        self._graphs, self._contexts = {}, {}
