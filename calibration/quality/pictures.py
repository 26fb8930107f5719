"""The pictures that bundles can make."""

from __future__ import annotations

from ...runtime.bundle.open import Bundle


def picture_graph(bundle: Bundle) -> str:
    """What makes pictures of latents: the decoder, or the preview of a bundle that has that alone."""
    return "preview" if "preview" in bundle.manifest.graphs and not has_pictures(bundle) else "decoder"


def has_pictures(*bundles: Bundle) -> bool:
    return all("decoder" in bundle.manifest.graphs for bundle in bundles)
