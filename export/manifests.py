"""What every exporter says of a model and of the bundle that it has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ditedge import __version__

from ..runtime.bundle.manifest import MANIFEST_NAME, MANIFEST_VERSION, Manifest, ModelInfo
from ..runtime.bundle.writing import hashed_files
from ..runtime.files import write_text


class Described(Protocol):
    """A checkpoint. config: patch_size, in_channels, out_channels, hidden_size, depth, num_heads, learn_sigma."""

    @property
    def config(self) -> Any: ...
    @property
    def prediction(self) -> str | None: ...
    @property
    def weights(self) -> dict[str, Tensor]: ...


def model_info(checkpoint: Described, **own: Any) -> ModelInfo:
    """own: the fields of ModelInfo that a family has its own words for."""
    config = checkpoint.config
    return ModelInfo(
        patch_size=config.patch_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        hidden_size=config.hidden_size,
        depth=config.depth,
        num_heads=config.num_heads,
        learned_variance=config.learn_sigma,
        prediction=checkpoint.prediction,  # type: ignore[arg-type]  # pydantic checks it
        parameters=sum(tensor.numel() for tensor in checkpoint.weights.values()),
        **own,
    )


def write_manifest(folder: Path, **fields: Any) -> Manifest:
    """The last file of a bundle, with the hashes of all others. fields: of Manifest, but those that are always so."""
    manifest = Manifest(
        format="ditedge-bundle",
        version=MANIFEST_VERSION,
        made_by=f"ditedge {__version__}",
        files=hashed_files(folder),
        **fields,
    )
    write_text(folder / MANIFEST_NAME, manifest.json_text())
    return manifest
