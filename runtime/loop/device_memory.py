"""Memory on a device and pinned memory beside it, as the loop for plans lays it out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .engine_trt import Gpu

ALIGNMENT = 256  # bytes: what TensorRT asks of every tensor's address


def aligned(size: int) -> int:
    """size rounded up to where the next tensor may begin."""
    return -(-size // ALIGNMENT) * ALIGNMENT


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
    """Arrays at aligned offsets of one device buffer, uploaded in one copy."""

    def __init__(self, gpu: Gpu, memory: Memory, parts: Mapping[str, np.ndarray]) -> None:
        self._gpu, self._offsets, end = gpu, dict[str, int](), 0
        for name, array in parts.items():
            self._offsets[name] = end
            end += aligned(array.nbytes)
        self._size = end
        self._base, self._host = memory.device(end), memory.pinned(end)

    def upload(self, parts: Mapping[str, np.ndarray], stream: int) -> None:
        """Only when no earlier upload is under way: the pinned memory is one."""
        for name, array in parts.items():
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self._host[self._offsets[name] : self._offsets[name] + array.nbytes] = flat
        self._gpu.copy(self._base, self._host.ctypes.data, self._size, stream)

    def address(self, name: str) -> int:
        return self._base + self._offsets[name]
