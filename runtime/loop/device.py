"""The plans of one folder on one GPU, as a run needs them (`DeviceLoop`, device_loop.py), and how the host waits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

from ..bundle.open import Bundle
from ..plans.record import BuildRecord
from .engine_trt import Context, Gpu, Plan

POLL_SECONDS = 1e-4


class Device(Protocol):
    bundle: Bundle
    gpu: Gpu
    record: BuildRecord
    plans: dict[str, Plan]
    graphs: bool  # whether its work can be captured
    stream: int

    def context(
        self, graph: str, shapes: Mapping[str, tuple[int, ...]], made: Mapping[str, tuple[int, ...]]
    ) -> Context: ...


def wait(gpu: Gpu, event: int) -> None:
    """Until the stream has passed `event`; the stream does not stop for it, and Ctrl-C is heard."""
    while not gpu.done(event):
        time.sleep(POLL_SECONDS)
