"""The pictures that bundles can make."""

from __future__ import annotations

from ...runtime.bundle.open import Bundle


def has_pictures(*bundles: Bundle) -> bool:
    return all("decoder" in bundle.manifest.graphs for bundle in bundles)


def image_shape(bundle: Bundle) -> tuple[int, int, int]:
    """[h, w, c] of the decoder's images."""
    height, width, channels = bundle.manifest.graphs["decoder"].outputs[0].shape[1:]
    return int(height), int(width), int(channels)
