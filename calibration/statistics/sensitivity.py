"""Which layers cost quality when they are rounded: measured one by one on the sampler's own trajectories.

One graph holds every linear twice, exact and rounded, and an input says which of the two is used. A layer's
contribution is the drift of the final latents when it alone is rounded, from the first step to the last: the trajectory
decides how much an early error still matters in the end, which neither random inputs nor single steps can tell.

Layers are left in float32 in the order of contribution^2 per byte that this costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ...runtime.bundle.open import Bundle
from ...runtime.loop.engine import Engine, EngineOptions, Tensors, WatchedEngine
from ...runtime.loop.engines import open_engine
from ...runtime.loop.noise import SeededNoise
from ...runtime.loop.session import Session
from ...runtime.replacing import scratch_folder
from ...runtime.report import Report, silent
from ...runtime.samplers.program import Program
from ..graph.linears import Linear, find_linears
from ..graph.surgery import constant, insert, load_graph, save_graph, take_place
from ..pool import Pool
from .collect import FIRST_SEED

SEED = FIRST_SEED + (1 << 20)  # neither calibration's images nor an evaluation's
FLAGS = "rounded"  # the extra input: [layers] bool

Rounding = Callable[[Any, list[Linear]], None]  # rewrites these linears of an ir.Model in place


@dataclass(frozen=True)
class Sensitivity:
    """contribution: drift when this layer alone is rounded. bytes: what leaving it in float32 costs."""

    layer: str
    contribution: float
    bytes: int

    @property
    def gain(self) -> float:
        """Squared error avoided per byte."""
        return self.contribution**2 / self.bytes


def layer_sensitivities(
    bundle: Bundle,
    pool: Pool,
    program: Program,
    layers: list[str],
    rounding: Rounding,
    weight_bits: int,
    report: Report = silent,
) -> list[Sensitivity]:
    """The layers of the float `bundle`, the one to be left in float32 first at the head."""
    model = load_graph(bundle.graph_file("step"))
    chosen = [linear for linear in find_linears(model) if linear.name in layers]
    sizes = {
        linear.name: max(1, linear.features[0] * linear.features[1] * (32 - weight_bits) // 8) for linear in chosen
    }
    _twin(model, chosen)
    rounding(model, chosen)
    names = [linear.name for linear in chosen]
    with scratch_folder() as folder:
        save_graph(model, folder / "step.onnx")
        del model
        engine = _Switched(open_engine(folder / "step.onnx", EngineOptions()), len(names))
    found = []
    with Session(bundle, engines={"step": engine}) as session:
        engine.flags[:] = False
        exact = _run(session, pool, program)
        for i, name in enumerate(names):
            report("measuring layers one by one", i + 1, len(names))
            engine.flags[:] = np.arange(len(names)) == i
            found.append(Sensitivity(name, drift(_run(session, pool, program), exact), sizes[name]))
    return sorted(found, key=lambda entry: -entry.gain)


def latents_of(bundle: Bundle, pool: Pool, program: Program) -> np.ndarray:
    """Final latents [S, C, H, W] of the sensitivity set: evenly spread subjects, the bundle's own guidance."""
    with Session(bundle) as session:
        return _run(session, pool, program)


def drift(latents: np.ndarray, reference: np.ndarray) -> float:
    """Mean over samples of ||latents - reference|| / ||reference||."""
    count = len(reference)
    difference = np.linalg.norm((np.float64(latents) - reference).reshape(count, -1), axis=1)
    return float(np.mean(difference / np.linalg.norm(np.float64(reference).reshape(count, -1), axis=1)))


def fewest_kept(ranked: list[str], drift_with: Callable[[list[str]], float], budget: float) -> tuple[int, float] | None:
    """The shortest head of `ranked` to keep so that the measured drift is within `budget`, by bisection.

    Returns its length and the drift measured with it; None when not even keeping every layer is enough.
    """
    measured = drift_with([])
    if measured <= budget:
        return 0, measured
    measured = drift_with(ranked)
    if measured > budget:
        return None
    low, high, best = 0, len(ranked), (len(ranked), measured)
    while high - low > 1:
        middle = (low + high) // 2
        measured = drift_with(ranked[:middle])
        if measured <= budget:
            high, best = middle, (middle, measured)
        else:
            low = middle
    return best


def _run(session: Session, pool: Pool, program: Program) -> np.ndarray:
    info = session.bundle.manifest.model
    samples = 1 if info.is_large else 4
    noise = SeededNoise([SEED + i for i in range(samples)], info.latent_shape)
    return pool.latents(session, program, pool.spread(samples), session.bundle.manifest.defaults.guidance, noise)


class _Switched(WatchedEngine):
    """The graph of twins as a step engine. flags [layers] bool: which of them are rounded."""

    def __init__(self, engine: Engine, layers: int) -> None:
        super().__init__(engine)
        self.flags = np.zeros(layers, bool)

    @contextmanager
    def around(self, inputs: Tensors, outputs: Tensors) -> Iterator[tuple[Tensors, Tensors]]:
        yield {**inputs, FLAGS: self.flags}, outputs


def _twin(model: Any, linears: list[Linear]) -> None:
    """Beside every linear a second one that stays exact, and a switch behind the two."""
    flags = ir.Value(name=FLAGS, shape=ir.Shape([len(linears)]), type=ir.TensorType(ir.DataType.BOOL))
    model.graph.inputs.append(flags)
    for i, linear in enumerate(linears):
        node, output = linear.node, linear.node.outputs[0]
        exact = ir.node(node.op_type, list(node.inputs), dict(node.attributes), name=f"node_{linear.name}:exact")
        exact.outputs[0].name = f"{linear.name}:exact"
        model.graph.insert_before(node, exact)
        switch = ir.node("Where", [None, output, exact.outputs[0]], name=f"node_{linear.name}:switch")
        switch.outputs[0].name = f"{linear.name}:switch"
        take_place(output, switch.outputs[0])
        switch.replace_input_with(1, output)
        model.graph.insert_after(node, switch)
        index = constant(model, f":layer_{i}", np.array(i))
        switch.replace_input_with(0, insert(model, switch, "Gather", [flags, index], f"{linear.name}:flag", axis=0))
