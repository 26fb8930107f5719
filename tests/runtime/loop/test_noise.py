"""Philox against Random123's known answers, the normals against PyTorch on CUDA."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from ditedge.runtime.loop import noise
from ditedge.runtime.loop.noise import philox4x32, standard_normal

# counter, key, output: `philox 4x32 10` in Random123's kat_vectors (Salmon et al. 2011).
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: str, key: str, expected: str) -> None:
    k0, k1 = words(key)
    assert philox4x32(np.array([words(counter)], dtype=np.uint32), (k0, k1))[0].tolist() == words(expected)


def test_equals_pytorch_cuda() -> None:
    """torch.manual_seed(0); torch.randn(4, 4, device="cuda"), first rows as published with PyTorch's CUDA generator."""
    expected = [-0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797, -0.6229, -0.3284]
    assert np.abs(standard_normal(0, 0, 8) - expected).max() < 5.1e-5  # four decimals were published


def test_doctests() -> None:
    assert doctest.testmod(noise).failed == 0


def test_is_standard_normal() -> None:
    x = standard_normal(2**63 + 5, 3, 200_000).astype(np.float64)
    # Standard errors of mean, variance, skewness and kurtosis of n samples: 1, sqrt(2), sqrt(6), sqrt(24) / sqrt(n).
    bound = 5 / np.sqrt(len(x))
    assert abs(x.mean()) < bound and abs(x.var() - 1) < bound * np.sqrt(2)
    assert abs((x**3).mean()) < bound * np.sqrt(15) and abs((x**4).mean() - 3) < bound * np.sqrt(96)


def test_streams_differ_and_prefixes_agree() -> None:
    base = standard_normal(7, 0, 1000)
    assert np.array_equal(base[:10], standard_normal(7, 0, 10))
    for seed, draw in [(8, 0), (7, 1), (7 + 2**32, 0), (7, 2**32)]:
        other = standard_normal(seed, draw, 1000)
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.15
