"""How good a set of samples is, in numbers. Distances between feature sets; the features are named by whoever calls.

None of these is "FID" or "KID" of the literature unless the features are Inception's: say whose they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of logits [N, K] whose largest entry is the label [N]."""
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def kernel_distance(
    a: np.ndarray, b: np.ndarray, *, subset_size: int = 500, subsets: int = 50, seed: int = 0
) -> tuple[float, float]:
    """Unbiased squared maximum mean discrepancy with kernel (x.y / F + 1)^3: the KID (Binkowski et al. 2018, eq. 4).

    a [N, F], b [M, F] features. Returns the mean over random subsets and its standard error (of subsets that overlap:
    a lower bound). float64; can be negative, because it is unbiased.
    """
    rng = np.random.default_rng(seed)
    size = min(subset_size, len(a), len(b))
    values = []
    for _ in range(subsets):
        x = a[rng.choice(len(a), size, replace=False)].astype(np.float64)
        y = b[rng.choice(len(b), size, replace=False)].astype(np.float64)
        kxx, kyy, kxy = (_cubic_kernel(u, v) for u, v in ((x, x), (y, y), (x, y)))
        within = (kxx.sum() - np.trace(kxx) + kyy.sum() - np.trace(kyy)) / (size * (size - 1))
        values.append(within - 2 * kxy.mean())
    return float(np.mean(values)), float(np.std(values) / np.sqrt(subsets))


def kernel_distance_of_sets(a: np.ndarray, b: np.ndarray, *, block: int = 1000) -> float:
    """Squared maximum mean discrepancy between the sets themselves (Gretton et al. 2012, eq. 5), the same kernel.

    a [N, F], b [M, F]. Zero for equal sets, never negative, and about 1/n too large for independent samples of one
    distribution. For samples that are not independent, such as images from the same seeds, where the unbiased
    estimate means nothing. float64, in blocks: memory grows with the block, not with N x M.
    """
    a, b = np.float64(a), np.float64(b)
    means = []
    for x, y in ((a, a), (b, b), (a, b)):
        total = sum(float(_cubic_kernel(x[i : i + block], y).sum()) for i in range(0, len(x), block))
        means.append(total / (len(x) * len(y)))
    return max(0.0, means[0] + means[1] - 2 * means[2])  # rounding may go below


def _cubic_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    kernel: np.ndarray = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


@dataclass(frozen=True)
class Moments:
    """The Gaussian fitted to a set of features: all that a Frechet distance asks of it."""

    mean: np.ndarray  # [F] float64
    covariance: np.ndarray  # [F, F] float64


def moments_of(features: np.ndarray) -> Moments:
    """features [N, F]."""
    x = np.float64(features)
    return Moments(x.mean(0), np.atleast_2d(np.cov(x, rowvar=False)))  # np.cov of F = 1 has no dimensions


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance between Gaussians fitted to features a [N, F] and b [M, F] (Dowson & Landau 1982)."""
    return frechet_of_moments(moments_of(a), moments_of(b))


def frechet_of_moments(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), float64, square roots by symmetric eigendecomposition."""
    mean = np.sum((a.mean - b.mean) ** 2)
    root = _symmetric_root(a.covariance)
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b.covariance @ root), 0)).sum()
    return float(mean + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def _symmetric_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    root: np.ndarray = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root
