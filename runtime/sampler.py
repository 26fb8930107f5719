"""The sampling loop. It has no mathematics: bind row i of the tables, run the engine, swap two buffers.

`step_tables` turns (program, labels, guidance) into the arrays that the step graph reads, all steps at once, so that a
device can upload them once and address them by offset. `Sampler` holds the loaded engines of one bundle and loops, or
hands the tables to the plans' own loop (device_loop.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .bundle import Bundle
from .engine import Engine, EngineOptions, open_engine
from .errors import Cancelled, EngineError, RequestError
from .images import linear_picture
from .manifest import ModelInfo
from .noise import standard_normal
from .programs import Program

if TYPE_CHECKING:
    from .device_loop import DeviceSampler

DECODE_PIXELS = 512 * 512  # of pictures decoded at a time: Stable Diffusion's decoder takes 5 kB a pixel
MODULATION_BYTES = 64 << 20  # adaLN rows held at a time; a row of DiT-XL is 0.8 MB


@dataclass(frozen=True)
class StepEvent:
    """What a progress callback is told after each step. Arrays are views: copy them to keep them."""

    step: int  # steps done of this batch, 1 .. steps
    steps: int
    latents: np.ndarray  # [B, C, H, W] float32, slot 0 of the state
    state: np.ndarray  # [B, K, C, H, W] float32, every slot of the program


class NoiseSource(Protocol):
    """Where a batch gets its noise."""

    def initial(self) -> np.ndarray: ...  # [B, C, H, W] float32, unit variance
    def step(self, step: int) -> np.ndarray: ...  # [B, C, H, W] float32


@dataclass(frozen=True)
class SeededNoise:
    """Each image's own Philox stream (see `noise`): an image never depends on its batch."""

    seeds: list[int]
    shape: tuple[int, int, int]

    def initial(self) -> np.ndarray:
        return self._draw(0)

    def step(self, step: int) -> np.ndarray:
        return self._draw(step + 1)

    def _draw(self, draw: int) -> np.ndarray:
        count = int(np.prod(self.shape))
        return np.stack([standard_normal(seed, draw, count).reshape(self.shape) for seed in self.seeds])


@dataclass(frozen=True)
class GivenNoise:
    """Recorded noise: z [B, C, H, W] and noise [N, B, C, H, W], one per step in order (the last is unused)."""

    z: np.ndarray
    noise: np.ndarray

    def initial(self) -> np.ndarray:
        return self.z

    def step(self, step: int) -> np.ndarray:
        return self.noise[step]


@dataclass(frozen=True)
class StepTables:
    """Every input of the step graph but state, noise and modulation, for all N steps of a batch of B.

    Unguided steps run E = B evaluations, guided ones E = 2B (all conditional, then all unconditional).
    `rows` are the (timestep, label) pairs of the conditioner; `condition` indexes them within one step.
    """

    guided: np.ndarray  # [N] bool
    labels: np.ndarray  # [R] int64: distinct labels of the batch, the null class among them when any step is guided
    timestep: np.ndarray  # [N] float32
    sample: np.ndarray  # [2B] int64; the first B are the unguided step's
    condition: np.ndarray  # [2B] int64, rows of `labels`; likewise
    combine_guided: np.ndarray  # [B, 2B, O] float32
    combine_plain: np.ndarray  # [B, B, O] float32
    x0_from: np.ndarray  # [N, B, 2] float32
    x0_bound: np.ndarray  # [B] float32
    log_sigma: np.ndarray  # [N, B, 2] float32
    mix: np.ndarray  # [N, B, K, K + 2] float32

    def inputs(self, step: int) -> dict[str, np.ndarray]:
        """Views, not copies: what step `step` binds."""
        evaluations = len(self.sample) if self.guided[step] else len(self.sample) // 2
        return {
            "sample": self.sample[:evaluations],
            "condition": self.condition[:evaluations],
            "combine": self.combine_guided if self.guided[step] else self.combine_plain,
            "x0_from": self.x0_from[step],
            "x0_bound": self.x0_bound,
            "log_sigma": self.log_sigma[step],
            "mix": self.mix[step],
        }


def step_tables(
    program: Program, model: ModelInfo, labels: list[int], guidance: float, away_from: list[int | None] | None = None
) -> StepTables:
    """Tables of a batch. guidance 1 is none: one evaluation per step, whatever the program says.

    Classifier-free guidance (Ho & Salimans 2022) is a row of `combine`: weight g on the labelled evaluation and 1 - g
    on the unlabelled one for the first `guided_channels` epsilon channels, 1 and 0 for every other channel.
    away_from: per sample, the class to guide away from instead of the null class (a "negative prompt").
    Raises RequestError when guidance is asked of a model without null class and there is no class to guide away from.
    """
    with np.errstate(over="ignore"):
        if not np.isfinite(np.array([guidance, 1 - guidance], dtype=np.float32)).all():
            raise RequestError(f"guidance {guidance:g} is not a finite number in float32")
    guided = program.guided & (guidance != 1.0)
    baselines = [model.null_class if other is None else other for other in away_from or [None] * len(labels)]
    if guided.any() and None in baselines:
        raise RequestError(
            f"guidance {guidance:g} needs a null class, and this model was trained without label dropout: "
            "use 1, or give a class to guide away from"
        )
    batch = len(labels)
    distinct = sorted(set(labels) | {label for label in baselines if label is not None and guided.any()})
    row: dict[int | None, int] = {label: i for i, label in enumerate(distinct)}
    conditional = [row[label] for label in labels]
    unconditional = [row.get(label, 0) for label in baselines]
    plain = np.repeat(np.eye(batch, dtype=np.float32)[:, :, None], model.out_channels, axis=2)
    with_label, without_label = plain.copy(), np.zeros_like(plain)
    with_label[:, :, : model.guided_channels] *= np.float32(guidance)
    without_label[:, :, : model.guided_channels] = (plain * np.float32(1 - guidance))[:, :, : model.guided_channels]

    def per_sample(table: np.ndarray) -> np.ndarray:
        return np.repeat(table.astype(np.float32)[:, None], batch, axis=1)

    return StepTables(
        guided=guided,
        labels=np.array(distinct, dtype=np.int64),
        timestep=program.timestep.astype(np.float32),
        sample=np.tile(np.arange(batch, dtype=np.int64), 2),
        condition=np.array(conditional + unconditional, dtype=np.int64),
        combine_guided=np.concatenate([with_label, without_label], axis=1),
        combine_plain=plain,
        x0_from=per_sample(program.x0_from),
        x0_bound=np.full(batch, program.x0_bound, dtype=np.float32),
        log_sigma=per_sample(program.log_sigma),
        mix=per_sample(program.mix),
    )


def decoded_at_a_time(size: tuple[int, int, int]) -> int:
    return max(1, DECODE_PIXELS // (size[0] * size[1]))


def decode_images(engine: Engine, latents: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """latents [B, C, H, W] float32 -> uint8 [B, *size], a few pictures at a time, so that memory stays bounded."""
    latents = np.ascontiguousarray(latents)
    images = np.empty((len(latents), *size), dtype=np.uint8)
    count = decoded_at_a_time(size)
    for i in range(0, len(latents), count):
        engine.run({"latent": latents[i : i + count]}, {"image": images[i : i + count]})
    return images


class Sampler:
    """The loaded engines of one bundle. One caller at a time; `close` frees them (or use it in a `with`)."""

    def __init__(
        self, bundle: Bundle, options: EngineOptions | None = None, engines: Mapping[str, Engine] | None = None
    ) -> None:
        """engines: by graph name, instead of those of the bundle's files; `close` closes them, too."""
        self.bundle = bundle
        self._options = options or EngineOptions()
        self._engines: dict[str, Engine] = dict(engines or {})
        self._device: DeviceSampler | None = None

    def load(self, graph: str) -> None:
        """Loads a graph now rather than at first use. Raises RequestError when the bundle has none."""
        self.bundle.require(graph)
        if self._options.plans is None:
            self.engine(graph)
        else:
            self._plans()

    def _plans(self) -> DeviceSampler | None:
        """The plans that the options name, loaded at first use; None without."""
        if self._device is None and self._options.plans is not None:
            from .device_loop import DeviceSampler

            self._device = DeviceSampler(self.bundle, self._options.plans, self._options.cuda_graphs)
        return self._device

    def engine(self, graph: str) -> Engine:
        """The engine of a graph in ONNX, loaded at first use."""
        if graph not in self._engines:
            info = self.bundle.manifest.graphs.get(graph)  # type: ignore[call-overload]
            if info is not None and info.precision == "bfloat16" and self._options.provider == "cpu":
                raise EngineError(
                    f"{self.bundle.folder} is in bfloat16, which ONNX Runtime's CPU provider cannot run: "
                    "use another --provider, or a float32 or fp16 bundle"
                )
            options = replace(self._options, keep_buffers=False) if graph == "decoder" else self._options
            self._engines[graph] = open_engine(self.bundle.graph(graph), options)
        return self._engines[graph]

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
        if (device := self._plans()) is not None:
            return device.latents(program, tables, noise, on_step, cancel)
        start = noise.initial()
        state = np.zeros((len(labels), program.slots, *start.shape[1:]), dtype=np.float32)
        state[:, 0] = start * np.float32(program.init_scale)
        next_state, silent = np.empty_like(state), np.zeros_like(start)
        step_engine = self.engine("step")
        for step, modulation in enumerate(self._modulations(tables, cancel)):
            if cancel is not None and cancel.is_set():
                raise Cancelled(f"stopped before step {step + 1} of {program.steps}")
            drawn = noise.step(step) if program.draws_noise(step) else silent
            inputs = {"state": state, "modulation": modulation, "noise": drawn, **tables.inputs(step)}
            step_engine.run(inputs, {"next_state": next_state}, cancel)
            state, next_state = next_state, state
            if on_step is not None:
                on_step(StepEvent(step + 1, program.steps, state[:, 0], state))
        return state[:, 0].copy()

    def images(self, latents: np.ndarray) -> np.ndarray:
        """latents [B, C, H, W] float32 -> uint8 [B, h, w, 1 or 3]. Raises RequestError without a decoder."""
        self.bundle.require("decoder")  # raises when there is none
        shape = self.bundle.manifest.graphs["decoder"].outputs[0].shape
        size = (int(shape[1]), int(shape[2]), int(shape[3]))
        if (device := self._plans()) is not None:
            return device.images(latents, size, decoded_at_a_time(size))
        return decode_images(self.engine("decoder"), latents, size)

    def preview(self, latents: np.ndarray) -> np.ndarray:
        """latents [B, C, H, W] float32 -> uint8 [B, h, w, 1 or 3]: by the bundle's projection, else by its decoder."""
        latents = np.where(np.isfinite(latents), latents, np.float32(0))  # no number has no colour
        projection = self.bundle.manifest.preview
        if projection is None:
            return self.images(latents)
        return linear_picture(latents, projection.weight, projection.bias, projection.scale)

    def _modulations(self, tables: StepTables, cancel: threading.Event | None) -> Iterator[np.ndarray]:
        """The adaLN rows [R, M] of each step in order, computed a block of steps at a time: memory stays bounded."""
        modulation = self.bundle.manifest.graphs["conditioner"].outputs[0]
        width, rows = int(modulation.shape[1]), len(tables.labels)
        block = max(1, min(len(tables.timestep), MODULATION_BYTES // (4 * width * rows)))
        buffer = np.empty((block * rows, width), dtype=np.float32)
        for start in range(0, len(tables.timestep), block):
            timestep = tables.timestep[start : start + block]
            filled = buffer[: len(timestep) * rows]
            pairs = {"timestep": np.repeat(timestep, rows), "label": np.tile(tables.labels, len(timestep))}
            self.engine("conditioner").run(pairs, {"modulation": filled}, cancel)
            yield from filled.reshape(len(timestep), rows, width)

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        if self._device is not None:
            self._device.close()
            self._device = None

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
