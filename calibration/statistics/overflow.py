"""Which tensors of a bundle exceed float16: the largest |value| of each over real trajectories, in float32."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...runtime.bundle.open import Bundle
from ...runtime.loop.engine import Engine, EngineOptions
from ...runtime.loop.engines import open_engine
from ...runtime.loop.loop import StepEvent, first_state
from ...runtime.loop.noise import SeededNoise
from ...runtime.loop.session import Session
from ...runtime.loop.tables import step_tables
from ...runtime.report import Report, silent
from ...runtime.samplers.program import Program
from ..graph.lowering import float_inputs, float_outputs, low_nodes
from ..graph.surgery import load_graph, save_graph

FLOAT16_MAX = 65504.0
MARGIN = 2.0  # a scan sees some trajectories, not all: what comes within a factor of 2 is kept in float32 too
CLASSES = 4
SCAN_SECONDS = 60.0  # for single steps of the other classes: all of a small model's, as many as fit of a large one's
LABELS_AT_A_TIME = 16  # of the conditioner: DiT-XL's rows of 64 pairs are 50 MB


class _Recorder:
    """An engine that also reads the graph's maxima and keeps the largest, and knows how long an evaluation takes."""

    def __init__(self, engine: Engine, names: list[str]) -> None:
        self.engine, self.names, self.inputs = engine, names, engine.inputs
        self.largest = self.last = np.zeros(len(names), np.float32)  # over all runs; of the last run
        self._seconds, self._evaluations = 0.0, 0

    @property
    def seconds(self) -> float:
        """Of one evaluation of the network, on average; for a step graph that has run."""
        return self._seconds / max(1, self._evaluations)

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        cancel: threading.Event | None = None,
    ) -> None:
        found = np.empty(len(self.names), np.float32)
        start = time.monotonic()
        self.engine.run(inputs, {**outputs, "ditedge_maxima": found}, cancel)
        self._seconds += time.monotonic() - start
        self._evaluations += len(inputs.get("condition", ()))
        self.last = np.where(np.isnan(found), np.float32(np.inf), found)
        self.largest = np.maximum(self.largest, self.last)

    def close(self) -> None:
        self.engine.close()


def overflow_scan(bundle: Bundle, folder: Path, report: Report = silent) -> dict[str, dict[str, float]]:
    """Graph -> tensor -> largest |value|, of every tensor that float16 would hold. folder: for temporary files.

    Runs a whole program of several classes, guided where the model can be. Then one step at each extreme of the program
    of every other class, or, where all would take longer than SCAN_SECONDS, of as many as fit, those with the largest
    conditioning first. It reports which.
    """
    info, manifest = bundle.manifest.model, bundle.manifest
    program = bundle.program(manifest.golden[0].program if info.is_large and manifest.golden else None)
    labels = np.linspace(0, info.num_classes - 1, min(CLASSES, info.num_classes)).astype(int).tolist()
    shape = info.latent_shape
    maxima: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        recorders = {name: _recorder(bundle.graph_file(name), Path(scratch)) for name in ("conditioner", "step")}
        with Session(bundle, engines=recorders) as session:
            rows = extreme_rows(program)
            states = _initial_states(program, rows, shape)

            def scan_trajectory(label: int) -> None:  # one at a time: the graph's every tensor is alive until the end
                noise = SeededNoise([label], shape)
                session.latents(program, [label], manifest.defaults.guidance, noise, _keep(states))

            for count, label in enumerate(labels):
                scan_trajectory(label)
                report("looking for float16 overflows, class by class", count + 1, len(labels))
            hot, others = _scan_single_steps(session, program, states, set(labels), recorders["step"], report)
            for count, label in enumerate(hot):  # what is large in a step makes the next ones larger
                scan_trajectory(label)
                report("looking for float16 overflows, classes that exceed it", count + 1, len(hot))
            timesteps, whole = ", ".join(f"{program.timestep[row]:g}" for row in rows), sorted(labels + hot)
            report(f"scanned trajectories of class {', '.join(map(str, whole))}; at timestep {timesteps}: {others}")
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


def _scan_single_steps(
    session: Session,
    program: Program,
    states: dict[int, np.ndarray],
    done: set[int],
    recorder: _Recorder,
    report: Report,
) -> tuple[list[int], str]:
    """One evaluation of each class at each row of `states` -> the first that exceed float16 anew; which, in words.

    What a step reads at the last row is a picture of another class, as large as its own would be if all goes well.
    """
    hot: dict[int, None] = {}
    known = _exceeds(recorder.largest)
    info, rows = session.bundle.manifest.model, sorted(states)
    affordable = max(1, int(SCAN_SECONDS / (recorder.seconds * len(rows))))
    largest = _conditioning(session, program.timestep[rows])
    order = [label for label in np.argsort(-largest, kind="stable").tolist() if label not in done]
    chosen, step = order[:affordable], session.engine("step")
    for count, label in enumerate(chosen):
        tables = step_tables(program, info, [label], 1.0)
        for row, modulation in zip(rows, _modulation(session, program.timestep[rows], [label])[0], strict=True):
            state = states[row]
            inputs: dict[str, np.ndarray] = {"state": state, "modulation": modulation[None]}
            inputs |= {"noise": np.zeros_like(state[:, 0]), **tables.inputs(row)}
            step.run(inputs, {"next_state": np.empty_like(state)})
            if (_exceeds(recorder.last) & ~known).any():
                hot[label] = None
        report("looking for float16 overflows, a step of each class", count + 1, len(chosen))
    if len(chosen) == len(order):
        said = f"all {info.num_classes} classes"
    else:
        said = (
            f"the {len(chosen)} of {info.num_classes} classes with the largest conditioning, as many as fit into "
            f"{SCAN_SECONDS:g} s"
        )
    return [*hot][:CLASSES], said


def _conditioning(session: Session, timesteps: np.ndarray) -> np.ndarray:
    """Each class's largest |modulation| at these timesteps, [num_classes]; infinite for what is no number."""
    classes = list(range(session.bundle.manifest.model.num_classes))
    blocks = (classes[i : i + LABELS_AT_A_TIME] for i in range(0, len(classes), LABELS_AT_A_TIME))
    largest = [np.abs(_modulation(session, timesteps, block)).max(axis=(1, 2)) for block in blocks]
    return np.nan_to_num(np.concatenate(largest), nan=np.inf)


def _modulation(session: Session, timesteps: np.ndarray, labels: list[int]) -> np.ndarray:
    """[L, T, M] float32 of L classes at T timesteps."""
    width = session.bundle.manifest.modulation_width
    out = np.empty((len(labels), len(timesteps), width), np.float32)
    pairs: dict[str, np.ndarray] = {"timestep": np.tile(timesteps.astype(np.float32), len(labels))}
    pairs["label"] = np.repeat(np.array(labels, np.int64), len(timesteps))
    session.engine("conditioner").run(pairs, {"modulation": out.reshape(-1, width)})
    return out


def largest_while_decoding(path: Path, latents: np.ndarray, scratch: Path) -> dict[str, float]:
    """Tensor -> largest |value| of the decoder graph at `path`, as above. latents [S, C, H, W]."""
    recorder = _recorder(path, scratch)
    image = load_graph(path).graph.outputs[0]
    shape = tuple(int(size) for size in list(image.shape)[1:])
    try:
        for latent in latents:
            recorder.run({"latent": latent[None]}, {"image": np.empty((1, *shape), np.uint8)})
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
    return _Recorder(open_engine(scratch / path.name, EngineOptions()), [str(value.name) for value in values])


def _weight_maxima(path: Path) -> dict[str, float]:
    graph = load_graph(path).graph
    values = {value for node in low_nodes(graph, ir.DataType.FLOAT16) for value in float_inputs(node)}
    return {
        str(v.name): float(np.abs(v.const_value.numpy()).max(initial=0)) for v in values if v.const_value is not None
    }
