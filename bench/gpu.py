"""Speed of plans and of ONNX Runtime's providers on the GPU at hand, as a Markdown table for docs/gpu-results.md.

    python bench/gpu.py --engine build/demo/fashion/engines/tensorrt-rtx/dit.plan --batch 1 --batch 8
    python bench/gpu.py --engine build/demo/fashion --provider cuda --batch 8

A run is a whole program with classifier-free guidance, all steps enqueued at once and no callback. first: the first
run of a batch size, with the capture of its CUDA graph; then the median of --repeat replays. Error: of the last
latents against ONNX Runtime's CPU provider, relative. Host idle: the share of wall time in which this process used no
CPU; only for a GPU does that say anything.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ditedge.runtime import EngineOptions, Session, open_bundle  # noqa: E402
from ditedge.runtime.errors import DitedgeError  # noqa: E402
from ditedge.runtime.loop.engine import options_for  # noqa: E402
from ditedge.runtime.loop.engine_trt import NvidiaGpu  # noqa: E402
from ditedge.runtime.loop.noise import GivenNoise, SeededNoise  # noqa: E402
from ditedge.runtime.loop.verify import relative_error  # noqa: E402

GUIDANCE = 4.0


@dataclass(frozen=True)
class Row:
    """seconds: of a whole run. idle: 0 to 1. error: NaN where it was not compared."""

    engine: str
    batch: int
    steps: int
    first: float
    seconds: float
    idle: float
    error: float

    def __str__(self) -> str:
        step, rate = 1000 * self.seconds / self.steps, self.batch / self.seconds
        error = "" if np.isnan(self.error) else f"{self.error:.1e}"
        return (
            f"| {self.engine} | {self.batch} | {step:.3f} | {rate:.2f} | {1000 * self.first:.0f} ms | "
            f"{self.idle:.0%} | {error} |"
        )


HEAD = """| engine | batch | ms per step | images per s | first run | host idle | error |
|---|---|---|---|---|---|---|"""


def measure(
    engine: Path, options: EngineOptions, batches: list[int], steps: int, repeat: int, check: bool
) -> list[Row]:
    """One row per batch size. The noise is drawn beforehand: its cost is the host's, not the engine's."""
    bundle = open_bundle(engine)
    model, program = bundle.manifest.model, bundle.program(steps=steps)
    shape, rows = model.latent_shape, []
    name = f"{engine.parent.name}/{engine.name}" if options.plans is not None else f"onnxruntime, {options.provider}"
    name += "" if options.cuda_graphs else ", no graph"
    with Session(bundle, options) as session:
        for batch in batches:
            labels = [i % model.num_classes for i in range(batch)]
            seeded = SeededNoise(list(range(batch)), shape)
            noise = GivenNoise(seeded.initial(), np.stack([seeded.step(step) for step in range(program.steps)]))
            guidance = GUIDANCE if model.null_class is not None else 1.0
            walls, cpu = [], time.process_time()
            latents = np.empty(0)
            for run in range(repeat + 1):
                if run == 1:
                    cpu = time.process_time()
                start = time.perf_counter()
                latents = session.latents(program, labels, guidance, noise)
                walls.append(time.perf_counter() - start)
            idle = max(0.0, 1.0 - (time.process_time() - cpu) / sum(walls[1:]))
            error = float("nan")
            if check:
                with Session(bundle) as reference:
                    error = relative_error(latents, reference.latents(program, labels, guidance, noise))
            rows.append(Row(name, batch, program.steps, walls[0], statistics.median(walls[1:]), idle, error))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, action="append", required=True, help="a .plan or a bundle; repeat it")
    parser.add_argument("--provider", default="cpu", help="of ONNX Runtime, for bundles")
    parser.add_argument("--batch", type=int, action="append", help="[default: 1 and 8]")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--no-graph", action="store_true", help="enqueue every step instead of replaying a CUDA graph")
    parser.add_argument("--no-check", action="store_true", help="do not compare with ONNX Runtime's CPU provider")
    given = parser.parse_args()
    rows = []
    try:
        for engine in track(given.engine, "measuring", transient=True):
            options = options_for(engine, EngineOptions(given.provider if engine.suffix != ".plan" else "cpu"))
            if given.no_graph:
                options = EngineOptions(plans=options.plans, cuda_graphs=False)
            rows += measure(engine, options, given.batch or [1, 8], given.steps, given.repeat, not given.no_check)
    except DitedgeError as error:
        sys.exit(f"Error: {error}")
    gpu = NvidiaGpu()
    found = gpu.device()
    device = found.name if found is not None else "no GPU"
    versions = ", ".join(f"{kind} {version}" for kind, version in gpu.libraries().items())
    print(f"{datetime.date.today()}, {device}, {versions or 'no TensorRT'}, {given.steps} steps\n\n{HEAD}")
    print("\n".join(map(str, rows)))


if __name__ == "__main__":
    main()
