"""Statistics of what every linear of the step graph is fed, over trajectories of the program that will be deployed.

The reductions are nodes of the graph itself: per run a linear gives back a few rows of numbers, never its activations,
so memory depends on the model and not on the set. The set is stratified: `samples` images of evenly spread classes or
prompts, one half guided and one half not, each recorded at `timesteps` evenly spread steps of its own trajectory
(Q-Diffusion, Li et al. 2023, section 4.1, samples uniformly over timesteps, too). After every batch the sums go to a
file, so that an interrupted collection continues where it was and ends with the same bits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.bundle.open import Bundle
from ...runtime.errors import RequestError
from ...runtime.files import check_writable, written_atomically
from ...runtime.loop.engine import Engine, EngineOptions, Tensors, WatchedEngine
from ...runtime.loop.engines import open_engine
from ...runtime.loop.noise import SeededNoise
from ...runtime.loop.session import Session
from ...runtime.replacing import scratch_folder
from ...runtime.report import Report, silent
from ...runtime.samplers.program import Program
from ..graph.surgery import load_graph, save_graph
from ..pool import Pool, Subject
from .instrument import instrument

STATISTICS_VERSION = 1
FIRST_SEED = 1 << 32  # calibration images are not those that anyone evaluates with seeds from 0 on


@dataclass(frozen=True)
class CalibrationSet:
    """Which points are recorded. groups: timestep groups with statistics of their own, in the order of sampling."""

    samples: int = 32
    timesteps: int = 25
    groups: int = 5
    batch: int = 4
    seed: int = 0


@dataclass
class LayerStatistics:
    """Of one linear's input with I channels and T tokens, per timestep group G. float64.

    rows: how many rows of I numbers were seen. token_amax: largest |x| of a token's row, by position of the token.
    """

    rows: np.ndarray  # [G]
    channel_max: np.ndarray  # [G, I]
    channel_min: np.ndarray
    channel_sum: np.ndarray
    channel_square: np.ndarray
    token_amax: np.ndarray  # [G, T]
    token_amax_sum: np.ndarray  # over evaluations

    @property
    def channel_amax(self) -> np.ndarray:
        """[I] largest |x| over all groups."""
        return np.maximum(np.abs(self.channel_max), np.abs(self.channel_min)).max(axis=0)

    @property
    def centre(self) -> np.ndarray:
        """[I] the middle between the largest and the smallest value over all groups."""
        return (self.channel_max.max(axis=0) + self.channel_min.min(axis=0)) / 2

    @property
    def mean(self) -> np.ndarray:
        """[I] over all groups."""
        return self.channel_sum.sum(axis=0) / self.rows.sum()

    @property
    def second_moment(self) -> np.ndarray:
        """[I] mean of x^2 over all groups."""
        return self.channel_square.sum(axis=0) / self.rows.sum()


@dataclass(frozen=True)
class Statistics:
    """fingerprint: hexadecimal SHA-256 of the source bundle, the program and the set."""

    fingerprint: str
    layers: dict[str, LayerStatistics]


def collect_statistics(
    bundle: Bundle,
    pool: Pool,
    program: Program,
    points: CalibrationSet,
    cache: Path,
    report: Report = silent,
) -> Statistics:
    """Runs the float bundle and returns what its linears see; `cache` is read, continued or replaced.

    Raises RequestError for a set that makes no sense or an unwritable cache.
    """
    _check_set(points)
    fingerprint = statistics_fingerprint(bundle, pool, program, points)
    batches = _batches(bundle, pool, points)
    done, layers = _read_cache(cache, fingerprint)
    if done == len(batches):
        return Statistics(fingerprint, layers)
    model = load_graph(bundle.graph_file("step"))
    shapes = instrument(model)
    recorded = np.unique(np.linspace(0, program.steps - 1, points.timesteps).round().astype(int)).tolist()
    groups = min(points.groups, len(recorded))
    layers = layers or {name: _empty(groups, channels, max(1, tokens)) for name, (channels, tokens) in shapes.items()}
    with scratch_folder() as folder:
        save_graph(model, folder / "step.onnx")
        del model
        recorder = _Recorder(open_engine(folder / "step.onnx", EngineOptions()), shapes)
    with Session(bundle, engines={"step": recorder}) as session:
        for index, batch in enumerate(batches[done:], start=done):

            def on_step(event: Any, index: int = index) -> None:
                if event.step - 1 in recorded:
                    group = recorded.index(event.step - 1) * groups // len(recorded)
                    recorder.fold(layers, group)
                done_steps = index * program.steps + event.step
                report("collecting statistics, sampler steps", done_steps, len(batches) * program.steps)

            noise = SeededNoise(batch.seeds, bundle.manifest.model.latent_shape)
            pool.latents(session, program, batch.subjects, batch.guidance, noise, on_step)
            _write_cache(cache, fingerprint, index + 1, layers)
    return Statistics(fingerprint, layers)


def statistics_fingerprint(bundle: Bundle, pool: Pool, program: Program, points: CalibrationSet) -> str:
    """Hexadecimal SHA-256 of everything that the statistics depend on."""
    arrays = (program.timestep, program.x0_from, program.log_sigma, program.mix, program.guidance)
    described = {
        "version": STATISTICS_VERSION,
        "bundle": bundle.sha256,
        "program": [array.tolist() for array in arrays] + [program.x0_bound, *program.init],
        "set": asdict(points),
        **({"prompts": pool.told()} if pool.told() else {}),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Batch:
    subjects: list[Subject]
    seeds: list[int]
    guidance: float


def _check_set(points: CalibrationSet) -> None:
    if min(points.samples, points.timesteps, points.groups, points.batch) < 1 or points.groups > points.timesteps:
        raise RequestError(f"calibration set {points}: at least 1 of each, and no more groups than timesteps")


def _batches(bundle: Bundle, pool: Pool, points: CalibrationSet) -> list[_Batch]:
    """Half of the samples guided (where a second evaluation guides), half not, each with evenly spread subjects."""
    guidance, text = bundle.manifest.defaults.guidance, bundle.manifest.text
    halves = [guidance, 1.0] if guidance != 1.0 and points.samples > 1 else [1.0]
    if text is not None and text.guidance != "true":
        halves = [guidance]
    batches = []
    for half, scale in enumerate(halves):
        count = len(range(half, points.samples, len(halves)))
        subjects = pool.spread(count)
        seeds = [FIRST_SEED + points.seed + i * len(halves) + half for i in range(count)]
        for i in range(0, count, points.batch):
            part = slice(i, i + points.batch)
            batches.append(_Batch(subjects[part], seeds[part], scale))
    return batches


def _empty(groups: int, channels: int, tokens: int) -> LayerStatistics:
    return LayerStatistics(
        rows=np.zeros(groups),
        channel_max=np.full((groups, channels), -np.inf),
        channel_min=np.full((groups, channels), np.inf),
        channel_sum=np.zeros((groups, channels)),
        channel_square=np.zeros((groups, channels)),
        token_amax=np.zeros((groups, tokens)),
        token_amax_sum=np.zeros((groups, tokens)),
    )


class _Recorder(WatchedEngine):
    """The instrumented step graph as an engine: keeps the reductions of its latest run until they are folded in."""

    def __init__(self, engine: Engine, shapes: Mapping[str, tuple[int, int]]) -> None:
        super().__init__(engine)
        self._evaluations = 0
        self._channels = {name: np.empty((4, channels), np.float32) for name, (channels, _) in shapes.items()}
        self._tokens = {name: np.empty((2, max(1, tokens)), np.float32) for name, (_, tokens) in shapes.items()}
        self._outputs: dict[str, np.ndarray] = {f"{name}:channels": array for name, array in self._channels.items()}
        self._rows = {name: np.zeros(1, np.int64) for name, (_, tokens) in shapes.items() if not tokens}
        self._outputs |= {f"{name}:tokens": array for name, array in self._tokens.items()}
        self._outputs |= {f"{name}:rows": array for name, array in self._rows.items()}

    @contextmanager
    def around(self, inputs: Tensors, outputs: Tensors) -> Iterator[tuple[Tensors, Tensors]]:
        self._evaluations = len(inputs["sample"])
        yield inputs, {**outputs, **self._outputs}

    def fold(self, layers: dict[str, LayerStatistics], group: int) -> None:
        """Adds the latest run to the statistics of a timestep group."""
        for name, layer in layers.items():
            channels, tokens = self._channels[name], self._tokens[name]
            counted = self._rows.get(name)
            layer.rows[group] += self._evaluations * tokens.shape[1] if counted is None else counted[0]
            np.maximum(layer.channel_max[group], channels[0], out=layer.channel_max[group])
            np.minimum(layer.channel_min[group], channels[1], out=layer.channel_min[group])
            layer.channel_sum[group] += channels[2]
            layer.channel_square[group] += channels[3]
            np.maximum(layer.token_amax[group], tokens[0], out=layer.token_amax[group])
            layer.token_amax_sum[group] += tokens[1]


def _write_cache(path: Path, fingerprint: str, batches: int, layers: dict[str, LayerStatistics]) -> None:
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{name}/{key}": array for name, layer in layers.items() for key, array in vars(layer).items()}
    with written_atomically(path, is_result=False) as temporary:
        save_file(tensors, temporary, metadata={"fingerprint": fingerprint, "batches": str(batches)})


def check_statistics_file(path: Path) -> None:
    """Raises RequestError for a file of somebody's that is no statistics, which collecting them would replace."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        check_writable(path)
        return
    try:
        with safe_open(path, framework="numpy") as file:
            ours = "fingerprint" in (file.metadata() or {})
    except (OSError, SafetensorError):
        ours = False
    if not ours:
        raise RequestError(f"--statistics {path} exists and holds no statistics: give another file")


def _read_cache(path: Path, fingerprint: str) -> tuple[int, dict[str, LayerStatistics]]:
    """Batches done and their statistics; none when there is no file, it is damaged, or is of something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("fingerprint") != fingerprint:
                return 0, {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            batches = int(metadata["batches"])
        fields: dict[str, dict[str, np.ndarray]] = {}
        for key, array in tensors.items():
            name, _, field = key.rpartition("/")
            fields.setdefault(name, {})[field] = array
        return batches, {name: LayerStatistics(**arrays) for name, arrays in fields.items()}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return 0, {}
