"""The pictures that bundles can make."""

from __future__ import annotations

from ...runtime.bundle.open import Bundle


def has_pictures(*bundles: Bundle) -> bool:
    return all("decoder" in bundle.manifest.graphs for bundle in bundles)
