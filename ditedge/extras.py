"""What only some installations have: imported when a command needs it, or missed in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .failures import importing_extra

if TYPE_CHECKING:
    from ditedge.runtime.sets.request import RayOptions


def ray_if_asked(options: RayOptions) -> None:
    """Before the work: Ray is imported where `--ray` asks for it, or missed in one sentence."""
    if options.ray is not None:
        with importing_extra("ray"):
            import ray  # noqa: F401


def exporter() -> Any:
    """ditedge.export, or one sentence when its libraries are not installed. PyTorch knows no quota of a container."""
    with importing_extra("export,cpu"):
        import torch

        import ditedge.export.exporter
        import ditedge.export.with_decoder
    from ditedge.runtime.processors import usable_processors

    torch.set_num_threads(min(torch.get_num_threads(), usable_processors()))
    return ditedge.export
