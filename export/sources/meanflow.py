"""MeanFlow's checkpoints: a DiT or SiT with a second timestep embedder, of how far a step goes (docs/sources.md).

Known by `h_embedder.` (Gsunshine/meanflow) or `r_embedder.` (zhuyu-cs/MeanFlow, which is given t - r all the same)
beside `t_embedder.`.
"""

from __future__ import annotations

from torch import Tensor

from ...runtime.errors import CheckpointError
from ..networks.meanflow import MeanFlowConfig
from .asked import Asked
from .family import Described
from .settings import Settings
from .shapes import config_from_shapes

OWN, OTHER = "h_embedder.", "r_embedder."


def read(state: dict[str, Tensor], settings: Settings, asked: Asked) -> Described | None:
    """None where the keys are another family's. Raises CheckpointError naming the key, or the setting."""
    embedders = [start for start in (OWN, OTHER) if any(key.startswith(start) for key in state)]
    if not embedders or not any(key.startswith("t_embedder.") for key in state):
        return None
    if len(embedders) > 1:
        raise CheckpointError(f"keys '{OWN}' and '{OTHER}': one of them says how far a step goes, not both")
    path = settings.values.get("path_type", "linear")
    if path != "linear":
        raise CheckpointError(f"{settings.said('path_type')}: MeanFlow is supported along path_type 'linear' only")
    tensors = {OWN + key.removeprefix(OTHER) if key.startswith(OTHER) else key: value for key, value in state.items()}
    config, said = config_from_shapes(tensors, settings, asked)
    if config.learn_sigma:
        raise CheckpointError("key 'final_layer.linear.weight': MeanFlow with learn_sigma is not supported")
    return Described(
        tensors,
        MeanFlowConfig(**vars(config)),
        said,
        prediction="mean-flow",
        guided_channels=config.in_channels,
        guidance=1.0,
        notes=("guidance: 1, what there is of it is in the weights",),
    )
