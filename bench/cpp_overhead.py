"""What the loop costs beside the network: the C++ runtime, the Python runtime and bare session runs, in one run.

    PYTHONPATH=examples python bench/cpp_overhead.py build/cpp/libditedge.so build/demo/fashion [--program ddim-10]

Every figure is milliseconds a step, conditioner included, no decoder. The three take turns, so that another load on the
machine falls on all of them; printed are the median, the fastest turn, and the median of what a turn took more than the
bare runs of the same turn. Each counted run follows an uncounted one of its own kind, after a pause: idle threads of an
ONNX Runtime spin for a while, and the C++ runtime's is not the Python module's, so one would pay for the other. For the
same reason each uses one thread, unless told otherwise.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from capi_ctypes import Ditedge

from ditedge.runtime import Session, generate, open_bundle
from ditedge.runtime.loop.conditions import of_steps
from ditedge.runtime.loop.engine import EngineOptions
from ditedge.runtime.loop.noise import SeededNoise
from ditedge.runtime.loop.tables import step_tables
from ditedge.runtime.samplers.program import Program

PAUSE_SECONDS = 0.1  # longer than idle threads spin


def bare_runs(session: Session, program: Program, guidance: float) -> Callable[[], None]:
    """The session runs of a sampling run and nothing else: inputs made beforehand, the same state at every step."""
    model, sessions = session.bundle.manifest.model, {}
    for graph in ("conditioner", "step"):
        sessions[graph] = session.engine(graph)._session  # type: ignore[attr-defined]
    tables = step_tables(program, model, [0], guidance)
    shape = model.latent_shape
    noise = SeededNoise([0], shape).initial()
    state = np.zeros((1, program.slots, *shape), np.float32)
    pairs = of_steps(tables.conditions, 0, program.steps)
    known = session.engine("step").inputs
    width = int(session.bundle.manifest.graphs["conditioner"].outputs[0].shape[1])
    modulation = np.zeros((tables.rows, width), np.float32)
    feeds = [
        {
            k: v
            for k, v in (tables.inputs(i) | {"state": state, "noise": noise, "modulation": modulation}).items()
            if k in known
        }
        for i in range(program.steps)
    ]

    def run() -> None:
        sessions["conditioner"].run(None, pairs)
        for feed in feeds:
            sessions["step"].run(None, feed)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--program", default="ddim-10")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    (found,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    bundle = open_bundle(given.bundle)
    program, guidance = bundle.program(given.program), bundle.manifest.defaults.guidance
    cpp = Ditedge(given.library, given.bundle, found, threads=given.threads)
    with Session(bundle, EngineOptions(threads=given.threads)) as session:
        runs: dict[str, Callable[[], object]] = {
            "bare session runs": bare_runs(session, program, guidance),
            "C++ runtime": lambda: cpp.generate([0], [0], images=False, program=given.program.encode()),
            "Python runtime": lambda: generate(bundle, [0], [0], program=program, output="latents", session=session),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(given.repeats):
            for name, run in runs.items():
                time.sleep(PAUSE_SECONDS)
                run()
                start = time.perf_counter()
                run()
                times[name].append(1000 * (time.perf_counter() - start) / program.steps)
    cpp.close()
    bare = times["bare session runs"]
    for name, taken in times.items():
        more = statistics.median(mine - theirs for mine, theirs in zip(taken, bare, strict=True))
        median = statistics.median(taken)
        print(f"{name:18} median {median:7.4f}, fastest {min(taken):7.4f}, over bare {more:7.4f} ms a step")


if __name__ == "__main__":
    main()
