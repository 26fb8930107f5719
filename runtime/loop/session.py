"""`Session`: the loaded engines of one bundle, on the host or on a device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np

from ..bundle.open import Bundle
from ..samplers.program import Program
from .device_loop import DeviceLoop
from .engine import Engine, EngineOptions
from .host_loop import HostLoop
from .loop import Loop, StepEvent
from .noise import NoiseSource
from .projection import linear_picture
from .tables import step_tables


class Session:
    """The loaded engines of one bundle. One caller at a time; `close` frees them (or use it in a `with`)."""

    def __init__(
        self, bundle: Bundle, options: EngineOptions | None = None, engines: Mapping[str, Engine] | None = None
    ) -> None:
        """engines: by graph name, instead of those of the bundle's files; `close` closes them, too."""
        self.bundle = bundle
        self._options = options or EngineOptions()
        self._host = HostLoop(bundle, self._options, engines)
        self._device: DeviceLoop | None = None

    @property
    def loop(self) -> Loop:
        """Where the work is done: on the plans that the options name, loaded at first use, or on the host."""
        if self._options.plans is None:
            return self._host
        if self._device is None:
            self._device = DeviceLoop(self.bundle, self._options.plans, self._options.cuda_graphs)
        return self._device

    def load(self, graph: str) -> None:
        """Loads a graph now rather than at first use. Raises RequestError when the bundle has none."""
        self.bundle.require(graph)
        self.loop.load(graph)

    def engine(self, graph: str) -> Engine:
        """The engine of a graph in ONNX, loaded at first use."""
        return self._host.engine(graph)

    def latents(
        self,
        program: Program,
        labels: list[int],
        guidance: float,
        noise: NoiseSource,
        on_step: Callable[[StepEvent], None] | None = None,
        cancel: threading.Event | None = None,
        away_from: list[int | None] | None = None,
    ) -> np.ndarray:
        """Runs the whole program on one batch -> latents [B, C, H, W] float32. Raises Cancelled, RequestError."""
        tables = step_tables(program, self.bundle.manifest.model, labels, guidance, away_from)
        return self.loop.latents(program, tables, noise, on_step, cancel)

    def images(self, latents: np.ndarray) -> np.ndarray:
        """latents [B, C, H, W] float32 -> uint8 [B, h, w, 1 or 3]. Raises RequestError without a decoder."""
        self.bundle.require("decoder")  # raises when there is none
        shape = self.bundle.manifest.graphs["decoder"].outputs[0].shape
        return self.loop.images(latents, (int(shape[1]), int(shape[2]), int(shape[3])))

    def preview(self, latents: np.ndarray) -> np.ndarray:
        """latents [B, C, H, W] float32 -> uint8 [B, h, w, 1 or 3]: by the bundle's projection, else by its decoder."""
        latents = np.where(np.isfinite(latents), latents, np.float32(0))  # no number has no colour
        projection = self.bundle.manifest.preview
        if projection is None:
            return self.images(latents)
        return linear_picture(latents, projection.weight, projection.bias, projection.scale)

    def close(self) -> None:
        self._host.close()
        if self._device is not None:
            self._device.close()
            self._device = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
