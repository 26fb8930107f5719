"""Features of pictures where nobody gives any: two layers of a fixed random convolution, averaged. numpy alone.

Distances in the features of an untrained network order samples much as those of a trained one do (Naeem et al. 2020,
"Reliable Fidelity and Diversity Metrics", section 4), but they know nothing of what a picture shows. They are here to
compare a model with itself: its few-step samples with its many-step ones.
"""

from __future__ import annotations

import numpy as np

SIDE = 32  # pixels, at most: larger pictures are averaged down to 32 to 63
FILTERS = (16, 32)
SIZE = 5


def own_features(images: np.ndarray) -> np.ndarray:
    """uint8 [n, h, w, c] -> [n, 96] float32: mean and deviation over the picture of every filter of both layers."""
    values = _smaller(images.astype(np.float32) / 127.5 - 1)
    found = []
    for layer, count in enumerate(FILTERS):
        values = np.maximum(_convolved(values, _filters(layer, values.shape[-1], count)), 0)
        found += [values.mean(axis=(1, 2)), values.std(axis=(1, 2))]
        values = _halved(values)
    return np.concatenate(found, axis=1)


def _filters(layer: int, channels: int, count: int) -> np.ndarray:
    """[SIZE, SIZE, channels, count], each of length 1; numpy promises the same numbers of a seed."""
    weights = np.random.Generator(np.random.Philox(layer)).standard_normal((SIZE, SIZE, channels, count))
    if layer == 0:
        weights[..., count // 2 :] -= weights[..., count // 2 :].mean(
            axis=(0, 1), keepdims=True
        )  # edges, no brightness
    return (weights / np.sqrt(np.sum(weights**2, axis=(0, 1, 2)))).astype(np.float32)


def _convolved(values: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """[n, h, w, c] -> [n, h', w', count], without a border; pictures smaller than a filter get one of their edge."""
    missing = [max(0, SIZE - side) for side in values.shape[1:3]]
    values = np.pad(values, [(0, 0), *((0, more) for more in missing), (0, 0)], mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(values, (SIZE, SIZE), axis=(1, 2))  # type: ignore[call-overload]
    return np.tensordot(windows, filters, axes=((4, 5, 3), (0, 1, 2)))


def _smaller(images: np.ndarray) -> np.ndarray:
    factor = max(1, min(images.shape[1:3]) // SIDE)
    return _averaged(images, factor)


def _halved(values: np.ndarray) -> np.ndarray:
    return _averaged(values, 2 if min(values.shape[1:3]) >= 2 else 1)


def _averaged(values: np.ndarray, factor: int) -> np.ndarray:
    n, h, w, c = values.shape
    values = values[:, : h // factor * factor, : w // factor * factor]
    return values.reshape(n, h // factor, factor, w // factor, factor, c).mean(axis=(2, 4))  # type: ignore[no-any-return]
