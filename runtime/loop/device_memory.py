"""Memory on a device and pinned memory beside it, as the loop for plans lays it out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .engine_trt import Gpu

ALIGNMENT = 256  # bytes: what TensorRT asks of every tensor's address


def aligned(size: int) -> int:
    """size rounded up to where the next tensor may begin."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def offsets_of(record: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Where each array of a record begins, in bytes from where the record does."""
    offsets, end = {}, 0
    for name, array in record.items():
        offsets[name] = end
        end += aligned(array.nbytes)
    return offsets


def size_of(record: Mapping[str, np.ndarray]) -> int:
    return sum(aligned(array.nbytes) for array in record.values())


class Memory:
    """Device and pinned memory of one owner, freed together."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._device: list[int] = []
        self._pinned: list[np.ndarray] = []

    def device(self, size: int) -> int:
        self._device.append(self._gpu.malloc(aligned(size)))
        return self._device[-1]

    def pinned(self, size: int) -> np.ndarray:
        self._pinned.append(self._gpu.malloc_host(aligned(size)))
        return self._pinned[-1]

    def free(self) -> None:
        while self._device:
            self._gpu.free(self._device.pop())
        while self._pinned:
            self._gpu.free_host(self._pinned.pop())


class Arena:
    """Records of arrays end to end in one device buffer, each array at an aligned offset, uploaded in one copy."""

    def __init__(self, gpu: Gpu, memory: Memory, records: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        self._gpu, self._starts, self._size = gpu, dict[str, int](), 0
        for name, record in records.items():
            self._starts[name] = self._size
            self._size += size_of(record)
        self._base, self._host = memory.device(self._size), memory.pinned(self._size)

    def upload(self, records: Mapping[str, Mapping[str, np.ndarray]], stream: int) -> None:
        """Only when no earlier upload is under way: the pinned memory is one."""
        for name, record in records.items():
            for part, offset in offsets_of(record).items():
                flat = np.ascontiguousarray(record[part]).reshape(-1).view(np.uint8)
                start = self._starts[name] + offset
                self._host[start : start + len(flat)] = flat
        self._gpu.copy(self._base, self._host.ctypes.data, self._size, stream)

    def address(self, record: str) -> int:
        return self._base + self._starts[record]
