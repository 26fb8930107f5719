"""VAE folders as diffusers writes them, and bundles with their decoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ditedge.export import ExportOptions, bundle_from_checkpoint


@pytest.fixture(scope="session")
def vaes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with diffusers' AutoencoderKL in "kl", an AutoencoderTiny in "tiny", an AutoencoderDC in "dc"."""
    from tests.export.networks.vaes import make_dc, make_tiny, make_vae  # skips where diffusers is not installed

    folder = tmp_path_factory.mktemp("vaes")
    make_vae(folder / "kl")
    make_tiny(folder / "tiny")
    make_dc(folder / "dc")
    return folder


@pytest.fixture(scope="session")
def latent_bundle(tmp_path_factory: pytest.TempPathFactory, vaes: Path) -> Callable[..., Path]:
    """latent_bundle(kind) -> folder of the golden latent model's bundle with that decoder."""
    from tests.export.networks.vaes import LATENT

    folder = tmp_path_factory.mktemp("latent-bundles")

    def export(kind: str) -> Path:
        if not (folder / kind).exists():
            bundle_from_checkpoint(LATENT, folder / kind, ExportOptions(heads=4, vae=vaes / kind))
        return folder / kind

    return export
