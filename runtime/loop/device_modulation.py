"""The adaLN rows of a run on a device: the conditioner runs for many steps at once, and they wait in one buffer."""

from __future__ import annotations

import numpy as np

from . import device_memory
from .conditions import Conditions
from .device import Device
from .device_memory import Arena, Memory, aligned, offsets_of
from .device_tables import RunShape, call_record

MODULATION_BYTES = 256 << 20  # adaLN rows on the device; more steps than fit are computed in blocks


class Modulation:
    """The conditioner's context, and rows [block, R, M] float32: those of `block` steps at a time."""

    def __init__(
        self,
        device: Device,
        memory: Memory,
        shape: RunShape,
        conditions: Conditions,
        vectors: np.ndarray | None,
    ) -> None:
        """vectors: [P, Q] of the prompts, where the conditioner reads them."""
        self._device, self._steps = device, shape.steps
        self._row = row = 4 * device.bundle.manifest.modulation_width * shape.rows  # bytes of one step
        self.row_bytes = aligned(row)
        limits = device.record.plans["conditioner"].profile.get(next(iter(conditions)))
        most = max(1, limits.max[0] // shape.rows) if limits is not None else 1
        # One call writes the rows of several steps end to end: possible where each step's begin at an aligned address
        per_call = min(most, shape.steps) if row % device_memory.ALIGNMENT == 0 else 1
        self.per_call = min(per_call, max(1, MODULATION_BYTES // row))
        calls = min(-(-shape.steps // self.per_call), max(1, MODULATION_BYTES // (row * self.per_call)))
        self._block = calls * self.per_call
        self._rows = memory.device(self._block * self.row_bytes)
        read = call_record(conditions, vectors, 0, self.per_call)
        inputs = device.plans["conditioner"].inputs  # more may be told than it reads
        self._offsets = {name: at for name, at in offsets_of(read).items() if name in inputs}  # in the record of a call
        made = {"modulation": (self.per_call * shape.rows, device.bundle.manifest.modulation_width)}
        self._context = device.context("conditioner", {name: array.shape for name, array in read.items()}, made)

    def copy(self, first: int, last: int, to: int, arena: Arena) -> None:
        """Enqueues the rows of steps first .. last - 1 for `to`, and their computation where a block begins."""
        gpu, at = self._device.gpu, first
        while at < last:
            if at % self._block == 0:
                self._compute(at, arena)
            end = min(last, (at // self._block + 1) * self._block) if self._row == self.row_bytes else at + 1
            source = self._rows + at % self._block * self.row_bytes
            gpu.copy(to + (at - first) * self.row_bytes, source, (end - at) * self._row, self._device.stream)
            at = end

    def _compute(self, first: int, arena: Arena) -> None:
        """The block of steps that begins with `first`."""
        end = min(first + self._block, self._steps)
        for call in range(first // self.per_call, -(-end // self.per_call)):
            for name, offset in self._offsets.items():
                self._context.set_address(name, arena.address(f"call/{call}") + offset)
            place = call * self.per_call % self._block
            self._context.set_address("modulation", self._rows + place * self.row_bytes)
            self._context.enqueue(self._device.stream)
