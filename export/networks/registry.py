"""Which module a configuration describes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .dit import DiT, DiTConfig
from .imeanflow import ImprovedConfig, ImprovedMeanFlow
from .lightningdit import LightningConfig, LightningDiT
from .maskdit import MaskConfig, MaskDiT
from .mdtv2 import MdtConfig, MdtV2
from .meanflow import MeanFlow, MeanFlowConfig
from .repa import RepaDiT

NETWORKS: dict[type[DiTConfig], Callable[[Any], DiT]] = {
    DiTConfig: RepaDiT,
    LightningConfig: LightningDiT,
    MdtConfig: MdtV2,
    MaskConfig: MaskDiT,
    MeanFlowConfig: MeanFlow,
    ImprovedConfig: ImprovedMeanFlow,
}


def network_of(config: DiTConfig) -> DiT:
    """The network that a checkpoint's configuration describes, with random weights."""
    return NETWORKS[type(config)](config)
