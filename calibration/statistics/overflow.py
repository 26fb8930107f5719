"""Which tensors of a bundle exceed float16: the largest |value| of each over real trajectories, in float32."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...runtime.bundle.open import Bundle
from ...runtime.loop.engine import Engine, EngineOptions, Tensors, WatchedEngine
from ...runtime.loop.engines import open_engine
from ...runtime.loop.loop import StepEvent, first_state
from ...runtime.loop.noise import SeededNoise
from ...runtime.loop.session import Session
from ...runtime.loop.tables import StepTables
from ...runtime.report import Report, silent
from ...runtime.samplers.program import Program
from ..graph.lowering import float_inputs, float_outputs, low_nodes
from ..graph.surgery import load_graph, save_graph
from ..pool import Pool, pool_of

FLOAT16_MAX = 65504.0
MARGIN = 2.0  # a scan sees some trajectories, not all: what comes within a factor of 2 is kept in float32 too
WHOLE = 4  # classes or prompts whose trajectories are scanned from beginning to end
LABELS_AT_A_TIME = 16  # of the conditioner: DiT-XL's rows of 64 pairs are 50 MB
SCAN_SECONDS = 60.0  # for single steps of the others: all of a small model's, as many as fit of a large one's


class _Recorder(WatchedEngine):
    """An engine that also reads the graph's maxima and keeps the largest, and knows how long an evaluation takes."""

    def __init__(self, engine: Engine, names: list[str]) -> None:
        super().__init__(engine)
        self.names = names
        self.largest = self.last = np.zeros(len(names), np.float32)  # over all runs; of the last run
        self._seconds, self._evaluations = 0.0, 0

    @property
    def seconds(self) -> float:
        """Of one evaluation of the network, on average; for a step graph that has run."""
        return self._seconds / max(1, self._evaluations)

    @contextmanager
    def around(self, inputs: Tensors, outputs: Tensors) -> Iterator[tuple[Tensors, Tensors]]:
        found = np.empty(len(self.names), np.float32)
        start = time.monotonic()
        yield inputs, {**outputs, "ditedge_maxima": found}
        self._seconds += time.monotonic() - start
        self._evaluations += len(inputs.get("condition", ()))
        self.last = np.where(np.isnan(found), np.float32(np.inf), found)
        self.largest = np.maximum(self.largest, self.last)


def overflow_scan(
    bundle: Bundle,
    folder: Path,
    report: Report = silent,
    graphs: Sequence[str] = ("conditioner", "step"),
    prompts: Path | None = None,
) -> dict[str, dict[str, float]]:
    """Graph -> tensor -> largest |value|, of every tensor that float16 would hold. folder: for temporary files.

    Runs a whole program of several classes or prompts, guided where the model can be. Then one step at each extreme of
    the program of every other one, or, where all would take longer than SCAN_SECONDS, of as many as fit, those with the
    largest conditioning first. It reports which. prompts: as `pool_of` has it.
    """
    info, manifest = bundle.manifest.model, bundle.manifest
    program = bundle.program(manifest.golden[0].program if info.is_large and manifest.golden else None)
    encode = not any(name.startswith("text") for name in graphs)  # else their graphs are to be scanned
    pool = pool_of(bundle, prompts, report, encode=encode).with_recorded(bundle)
    chosen = np.linspace(0, len(pool.of) - 1, min(WHOLE, len(pool.of))).astype(int).tolist()
    maxima: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        recorders = {name: _recorder(bundle.graph_file(name), Path(scratch)) for name in graphs}
        with Session(bundle, engines=recorders) as session:
            rows = extreme_rows(program)
            scan = _Scan(session, pool, program, _initial_states(program, rows, info.latent_shape), recorders["step"])
            for count, number in enumerate(chosen):
                scan.trajectory(number)
                report(f"looking for float16 overflows, {scan.kind} by {scan.kind}", count + 1, len(chosen))
            hot, others = scan.single_steps(set(chosen), report)
            for count, number in enumerate(hot):  # what is large in a step makes the next ones larger
                scan.trajectory(number)
                report(f"looking for float16 overflows, {scan.plural} that exceed it", count + 1, len(hot))
            timesteps, whole = ", ".join(f"{program.timestep[row]:g}" for row in rows), sorted(chosen + hot)
            of = ", ".join(str(number + (scan.kind == "prompt")) for number in whole)
            report(f"scanned trajectories of {scan.kind} {of}; at timestep {timesteps}: {others}")
        for name, recorder in recorders.items():
            seen = zip(recorder.names, recorder.largest.tolist(), strict=True)
            maxima[name] = dict(seen) | _weight_maxima(bundle.graph_file(name))
    return maxima


def extreme_rows(program: Program) -> list[int]:
    """The first and the last step, and those of the largest sigma / alpha and of the most noise added."""
    noise = np.abs(program.mix[:, 0, -1]) * np.exp(program.log_sigma.sum(axis=1))
    return sorted({0, program.steps - 1, int(np.abs(program.x0_from[:, 1]).argmax()), int(noise.argmax())})


def _initial_states(program: Program, rows: list[int], shape: tuple[int, int, int]) -> dict[int, np.ndarray]:
    """Row -> [1, K, C, H, W] that its step reads: noise at the first, else what a trajectory will leave."""
    states = {row: np.zeros((1, program.slots, *shape), np.float32) for row in rows}
    states[0] = first_state(program, SeededNoise([0], shape))
    return states


def _keep(states: dict[int, np.ndarray]) -> Callable[[StepEvent], None]:
    """Keeps of a running trajectory what the steps in `states` will read."""

    def on_step(event: StepEvent) -> None:
        if event.step in states:
            states[event.step] = event.state.copy()

    return on_step


@dataclass(frozen=True)
class _Scan:
    """The work of a scan. states: row -> [1, K, C, H, W] that its step reads."""

    session: Session
    pool: Pool
    program: Program
    states: dict[int, np.ndarray]
    recorder: _Recorder  # of the step

    @property
    def kind(self) -> str:
        return "prompt" if self.pool.away_from is not None else "class"

    @property
    def plural(self) -> str:
        return "prompts" if self.kind == "prompt" else "classes"

    def trajectory(self, number: int) -> None:
        """A whole one of subject `number`: one at a time, since all of a graph's tensors are alive until its end."""
        manifest = self.session.bundle.manifest
        noise, guidance = SeededNoise([number], manifest.model.latent_shape), manifest.defaults.guidance
        self.pool.latents(self.session, self.program, [self.pool.of[number]], guidance, noise, _keep(self.states))

    def single_steps(self, done: set[int], report: Report) -> tuple[list[int], str]:
        """One evaluation of each other subject at each row -> the first that exceed float16 anew; which, in words.

        What a step reads at the last row is another subject's picture, as large as its own would be if all goes well.
        """
        hot: dict[int, None] = {}
        known, rows, count = _exceeds(self.recorder.largest), sorted(self.states), len(self.pool.of)
        affordable = max(1, int(SCAN_SECONDS / (self.recorder.seconds * len(rows))))
        order = [number for number in np.argsort(-self._conditioning(), kind="stable").tolist() if number not in done]
        chosen, step = order[:affordable], self.session.engine("step")
        for index, number in enumerate(chosen):
            tables = self._tables(number)
            for row in rows:
                inputs = self.session.step_inputs(tables, row, self.states[row])
                step.run(inputs, {"next_state": np.empty_like(self.states[row])})
                if (_exceeds(self.recorder.last) & ~known).any():
                    hot[number] = None
            report(f"looking for float16 overflows, a step of each {self.kind}", index + 1, len(chosen))
        if len(chosen) == len(order):
            return [*hot][:WHOLE], f"all {count} {self.plural}"
        return [*hot][:WHOLE], (
            f"the {len(chosen)} of {count} {self.plural} with the largest conditioning, as many as fit into "
            f"{SCAN_SECONDS:g} s"
        )

    def _tables(self, first: int, count: int = 1) -> StepTables:
        return self.pool.tables(self.session.bundle, self.program, self.pool.of[first : first + count], 1.0)

    def _conditioning(self) -> np.ndarray:
        """The largest |number| that each subject is told the network by, [subjects]; infinite for what is no number.

        Of classes their rows of modulation at the rows of `states`, of prompts their context.
        """
        found, block = np.zeros(len(self.pool.of)), LABELS_AT_A_TIME if self.kind == "class" else 1
        for first in range(0, len(found), block):
            tables = self._tables(first, block)
            for row, state in self.states.items():
                inputs = self.session.step_inputs(tables, row, state)
                rows, context = _largest(inputs["modulation"]), _largest(inputs.get("context", np.zeros((1, 1))))
                for index, own in enumerate(tables.rows_of, first):
                    found[index] = max(found[index], rows[own].max(), context.max())
        return found


def _largest(rows: np.ndarray) -> np.ndarray:
    """[R, ...] -> [R] largest |number| of each row; infinite where one is no number."""
    return np.nan_to_num(np.abs(rows).reshape(len(rows), -1).max(axis=1), nan=np.inf)


def largest_while_decoding(bundle: Bundle, latents: np.ndarray, scratch: Path) -> dict[str, float]:
    """Tensor -> largest |value| of the bundle's decoder, as above. latents [S, C, H, W]."""
    path, size = bundle.graph_file("decoder"), bundle.manifest.picture_size("decoder", latents.shape[2:])
    recorder = _recorder(path, scratch)
    try:
        for latent in latents:
            recorder.run({"latent": latent[None]}, {"image": np.empty((1, *size), np.uint8)})
    finally:
        recorder.close()
    return dict(zip(recorder.names, recorder.largest.tolist(), strict=True)) | _weight_maxima(path)


def too_large(maxima: Mapping[str, float]) -> frozenset[str]:
    return frozenset(name for name, value in maxima.items() if _exceeds(np.array(value)))


def _exceeds(largest: np.ndarray) -> np.ndarray:
    """Where magnitudes are beyond float16, or near it; NaN is."""
    return ~(largest * MARGIN <= FLOAT16_MAX)


def _recorder(path: Path, scratch: Path) -> _Recorder:
    model = load_graph(path)
    graph, axis = model.graph, ir.node("Constant", [], attributes={"value_ints": [1]})
    constants = set(graph.initializers.values())
    touched = [
        value for node in low_nodes(graph, ir.DataType.FLOAT16) for value in [*float_inputs(node), *float_outputs(node)]
    ]
    values = [value for value in dict.fromkeys(touched) if value not in constants]
    nodes, parts = [axis], []
    for value in values:
        nodes.append(ir.node("Abs", [value]))
        nodes.append(ir.node("ReduceMax", [nodes[-1].outputs[0]], attributes={"keepdims": 0}))
        nodes.append(ir.node("Reshape", [nodes[-1].outputs[0], axis.outputs[0]]))
        parts.append(nodes[-1].outputs[0])
    nodes.append(ir.node("Concat", parts, attributes={"axis": 0}))
    graph.extend(nodes)
    output = nodes[-1].outputs[0]
    output.name, output.dtype, output.shape = "ditedge_maxima", ir.DataType.FLOAT, ir.Shape([len(values)])
    graph.outputs.append(output)
    save_graph(model, scratch / path.name)
    # fused=False: ONNX Runtime's fusion of a GELU that is written out takes tensors away that somebody else reads
    return _Recorder(
        open_engine(scratch / path.name, EngineOptions(fused=False)), [str(value.name) for value in values]
    )


def _weight_maxima(path: Path) -> dict[str, float]:
    graph = load_graph(path).graph
    values = {value for node in low_nodes(graph, ir.DataType.FLOAT16) for value in float_inputs(node)}
    return {
        str(v.name): float(np.abs(v.const_value.numpy()).max(initial=0)) for v in values if v.const_value is not None
    }
