"""A graph run by an engine as ditedge opens it: its time, and what every node of it took on ONNX Runtime."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ditedge.runtime import open_bundle
from ditedge.runtime.bench.contender import job_of
from ditedge.runtime.loop.conditions import of_steps, with_vectors
from ditedge.runtime.loop.engine import EngineOptions
from ditedge.runtime.loop.engine_ort import PROVIDERS, session_settings
from ditedge.runtime.loop.engines import open_engine
from ditedge.runtime.loop.host_loop import HostLoop
from ditedge.runtime.loop.loop import first_state

from .counts import Node, Tensor

ENDS = "_kernel_time"
LEAST_SECONDS, LEAST_RUNS, MOST_RUNS = 1.0, 5, 200


@dataclass(frozen=True)
class Profile:
    """One graph. seconds: of a run without profiling, median; bytes: of the tensors that go in and out of it."""

    seconds: float
    nodes: tuple[Node, ...]  # of one run on ONNX Runtime: the one whose sum is the median
    bytes: int


def graphs_of(path: Path, batch: int, guidance: float = 4.0) -> dict[str, tuple[Path, dict[str, np.ndarray]]]:
    """By name the file of a graph and what it reads: the conditioner all steps of the default program, the step graph
    one of them in the middle, the decoder the pictures of a batch."""
    bundle = open_bundle(path)
    job, loop = job_of(bundle, batch, guidance), HostLoop(bundle, EngineOptions())
    try:
        tables, state = job.tables(job.program), first_state(job.program, job.noise)
        told = loop.text.inputs(tables.prompts, state.shape[3:]) if tables.prompts else {}
        inputs = {
            "conditioner": with_vectors(of_steps(tables.conditions, 0, job.program.steps), told.get("vector")),
            "step": loop.step_inputs(tables, job.program.steps // 2, state),
            "decoder": {"latent": np.ascontiguousarray(state[:, 0])},
        }
    finally:
        loop.close()
    return {name: (bundle.graph_file(name), given) for name, given in inputs.items() if name in bundle.manifest.graphs}


def profiled(graph: Path, inputs: Mapping[str, np.ndarray], threads: int, provider: str = "cpu") -> Profile:
    """Times the graph on a provider, after a profile of ONNX Runtime, which has its nodes. threads: 0 is every core."""
    with tempfile.TemporaryDirectory() as folder:
        session = _session(graph, threads, Path(folder) / "profile")
        given = {tensor.name: inputs[tensor.name] for tensor in session.get_inputs()}
        for _ in range(LEAST_RUNS):
            made = session.run(None, given)
        outputs = {tensor.name: array for tensor, array in zip(session.get_outputs(), made, strict=True)}
        events = json.loads(Path(session.end_profiling()).read_text())
    del session
    engine = open_engine(graph, EngineOptions(provider=provider, threads=threads))
    try:
        seconds = _median(lambda: engine.run(given, outputs))
    finally:
        engine.close()
    moved = sum(array.nbytes for array in (*given.values(), *outputs.values()))
    return Profile(seconds, median_run(events, LEAST_RUNS), moved)


def median_run(events: list[dict[str, Any]], runs: int) -> tuple[Node, ...]:
    """The nodes of the run whose sum is the median of all but the first one. Events come in the order of execution."""
    nodes = [node_of(event) for event in events if event.get("cat") == "Node" and event["name"].endswith(ENDS)]
    each = len(nodes) // runs
    split = [tuple(nodes[i * each : (i + 1) * each]) for i in range(1 if runs > 1 else 0, runs)]
    return sorted(split, key=lambda run: sum(node.seconds for node in run))[len(split) // 2]


def node_of(event: Mapping[str, Any]) -> Node:
    told = event["args"]
    return Node(
        told["op_name"], _tensors(told["input_type_shape"]), _tensors(told["output_type_shape"]), event["dur"] / 1e6
    )


def _tensors(listed: list[dict[str, list[int]]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(dtype, tuple(shape)) for each in listed for dtype, shape in each.items())


def _session(graph: Path, threads: int, profile: Path) -> Any:
    import onnxruntime

    settings = session_settings(EngineOptions(threads=threads))
    settings.enable_profiling, settings.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(str(graph), settings, providers=[PROVIDERS["cpu"]])


def _median(work: Any) -> float:
    work(), work()
    seconds: list[float] = []
    while len(seconds) < LEAST_RUNS or (sum(seconds) < LEAST_SECONDS and len(seconds) < MOST_RUNS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
