"""Gaussian noise that is the same in every language: Philox4x32-10 and Box-Muller, laid out like PyTorch on CUDA.

`standard_normal(seed, draw, n)` is the draw-th `torch.randn(n, device="cuda")` after `torch.manual_seed(seed)`, as long
as n is at most the number of threads the GPU holds at once (SM count x threads per SM: 24,576 on the smallest Orin,
270,336 on an H100); PyTorch's own numbers depend on the GPU above that, ours do not.

Element i uses Philox with key = seed and counter = (draw, subsequence i), as cuRAND's `curand_init` lays them out, and
takes the first of the four normals that `curand_normal4` makes. An image's initial noise is draw 0 and the noise of
step n is draw n + 1, whether or not earlier steps needed theirs. Computed in float64, rounded once to float32.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 (Salmon et al., SC11, "Parallel random numbers: as easy as 1, 2, 3").

    counter [n, 4] uint32, key two uint32 -> [n, 4] uint32. Known answer from Random123's kat_vectors:

    >>> [f"{word:08x}" for word in philox4x32(np.zeros((1, 4), np.uint32), (0, 0))[0]]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = (counter[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = _MULTIPLIER_0 * c0, _MULTIPLIER_1 * c2
        c0 = (product1 >> _HALF) ^ c1 ^ np.uint64(k0)
        c2 = (product0 >> _HALF) ^ c3 ^ np.uint64(k1)
        c1, c3 = product1 & _LOW, product0 & _LOW
        k0, k1 = (k0 + _WEYL_0) & 0xFFFFFFFF, (k1 + _WEYL_1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def standard_normal(seed: int, draw: int, count: int) -> np.ndarray:
    """[count] float32 standard normal numbers: the draw-th draw (0, 1, ...) of the stream `seed` (0 <= seed < 2**64).

    >>> [f"{x:.4f}" for x in standard_normal(0, 0, 4)]  # torch.manual_seed(0); torch.randn(4, device="cuda")
    ['-0.9247', '-0.4253', '-2.6438', '0.1452']
    """
    seed = operator.index(seed)  # numpy's integers overflow below
    counter = np.zeros((count, 4), dtype=np.uint32)
    counter[:, 0], counter[:, 1] = draw & 0xFFFFFFFF, draw >> 32
    subsequence = np.arange(count, dtype=np.uint64)
    counter[:, 2], counter[:, 3] = subsequence & _LOW, subsequence >> _HALF
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)).astype(np.float64)
    # cuRAND's _curand_box_muller: u in (0, 1], v in (0, 2 pi); the first normal is the sine branch.
    u = (words[:, 0] + 0.5) * 2.0**-32
    v = (words[:, 1] + 0.5) * (2.0**-32 * 2.0 * np.pi)
    return (np.sqrt(-2.0 * np.log(u)) * np.sin(v)).astype(np.float32)


class NoiseSource(Protocol):
    """Where a batch gets its noise."""

    def initial(self) -> np.ndarray: ...  # [B, C, H, W] float32, unit variance
    def step(self, step: int) -> np.ndarray: ...  # [B, C, H, W] float32


@dataclass(frozen=True)
class SeededNoise:
    """Each image's own Philox stream: an image never depends on its batch."""

    seeds: list[int]
    shape: tuple[int, int, int]

    def initial(self) -> np.ndarray:
        return self._draw(0)

    def step(self, step: int) -> np.ndarray:
        return self._draw(step + 1)

    def _draw(self, draw: int) -> np.ndarray:
        count = int(np.prod(self.shape))
        return np.stack([standard_normal(seed, draw, count).reshape(self.shape) for seed in self.seeds])


@dataclass(frozen=True)
class GivenNoise:
    """Recorded noise: z [B, C, H, W] and noise [N, B, C, H, W], one per step in order (the last is unused)."""

    z: np.ndarray
    noise: np.ndarray

    def initial(self) -> np.ndarray:
        return self.z

    def step(self, step: int) -> np.ndarray:
        return self.noise[step]
