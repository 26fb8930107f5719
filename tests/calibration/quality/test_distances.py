"""Quality metrics against closed forms and literal formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ditedge.calibration import psnr
from ditedge.calibration.quality.distances import accuracy, frechet_distance, kernel_distance, kernel_distance_of_sets

RNG = np.random.default_rng(0)


def with_moments(n: int, mean: np.ndarray, cov: np.ndarray) -> np.ndarray:
    """Points whose sample mean and covariance are exactly these."""
    x = RNG.standard_normal((n, len(mean)))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(x, rowvar=False)))).T
    return x @ np.linalg.cholesky(cov).T + mean


def test_frechet_of_commuting_and_of_rotated_covariances() -> None:
    rotation, _ = np.linalg.qr(RNG.standard_normal((5, 5)))
    variances = RNG.uniform(0.5, 3, (2, 5))
    means = RNG.standard_normal((2, 5))
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((np.sqrt(variances[0]) - np.sqrt(variances[1])) ** 2)
    for basis in (np.eye(5), rotation):
        a, b = (
            with_moments(100, basis @ m, basis @ np.diag(v) @ basis.T) for m, v in zip(means, variances, strict=True)
        )
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_of_one_feature() -> None:
    """(mu_a - mu_b)^2 + (sigma_a - sigma_b)^2."""
    a = with_moments(50, np.array([1.0]), np.array([[4.0]]))
    b = with_moments(50, np.array([-2.0]), np.array([[9.0]]))
    assert frechet_distance(a, b) == pytest.approx(9 + 1, rel=1e-9)


def test_frechet_of_two_by_two_without_common_eigenvectors() -> None:
    """tr (AB)^1/2 of 2x2 matrices is sqrt(tr AB + 2 sqrt(det AB))."""
    cov_a, cov_b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    product = cov_a @ cov_b
    expected = np.trace(cov_a + cov_b) - 2 * math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
    a, b = with_moments(30, np.zeros(2), cov_a), with_moments(30, np.zeros(2), cov_b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_is_the_literal_double_sum() -> None:
    a, b = RNG.standard_normal((12, 4)), RNG.standard_normal((12, 4)) + 0.5
    n = len(a)
    total = 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                total += ((a[i] @ a[j] / 4 + 1) ** 3 + (b[i] @ b[j] / 4 + 1) ** 3) / (n * (n - 1))
            total -= 2 * (a[i] @ b[j] / 4 + 1) ** 3 / (n * n)
    mean, error = kernel_distance(a, b, subsets=3)
    assert mean == pytest.approx(total, rel=1e-12) and error == pytest.approx(0, abs=1e-12)


def test_kernel_distance_of_equal_distributions_is_around_zero() -> None:
    mean, _ = kernel_distance(RNG.standard_normal((2000, 8)), RNG.standard_normal((2000, 8)), subset_size=250)
    shifted, _ = kernel_distance(RNG.standard_normal((2000, 8)), RNG.standard_normal((2000, 8)) + 0.3, subset_size=250)
    assert abs(mean) < 0.01 < shifted


def test_kernel_distance_of_sets_is_the_literal_double_sum() -> None:
    a, b = RNG.standard_normal((7, 4)), RNG.standard_normal((5, 4)) + 0.5

    def mean(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean([[(u @ v / 4 + 1) ** 3 for v in y] for u in x]))

    expected = mean(a, a) + mean(b, b) - 2 * mean(a, b)
    for block in (1, 3, 100):
        assert kernel_distance_of_sets(a, b, block=block) == pytest.approx(expected, rel=1e-9)
    assert kernel_distance_of_sets(a, a) == pytest.approx(0, abs=1e-12)


def test_accuracy_and_psnr() -> None:
    assert accuracy(np.array([[1, 0], [0, 1], [3, 2]]), np.array([0, 1, 1])) == pytest.approx(2 / 3)
    assert psnr(np.zeros(4), np.zeros(4)) == math.inf
    assert psnr(np.zeros(4), np.full(4, 255.0)) == pytest.approx(0)
    assert psnr(np.uint8([0, 10]), np.uint8([0, 0])) == pytest.approx(10 * math.log10(255**2 / 50))
