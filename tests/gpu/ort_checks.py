"""ONNX Runtime's CUDA provider, where this machine has it: on the device, and beside it with copies at each step."""

from __future__ import annotations

import time

from ditedge.runtime import EngineOptions, Session, generate
from ditedge.runtime.loop.engine_ort import refusal
from ditedge.runtime.loop.verify import replay

from .loop_checks import TOLERANCE, Lab

ON_DEVICE, WITH_COPIES = "cuda", "CUDAExecutionProvider"
BATCHES, RUNS = (1, 8), 5


def missing() -> str | None:
    """Why the check cannot run here."""
    return refusal(ON_DEVICE)


def ort_cuda(lab: Lab) -> str:
    """Recorded trajectories of PyTorch, and what a step takes."""
    bundle = lab.subject.bundle
    for provider in (ON_DEVICE, WITH_COPIES):
        with Session(bundle, EngineOptions(provider)) as session:
            replayed = [replay(session, one) for one in bundle.manifest.golden]
            said = ", ".join(f"{one.golden.program} {one.worst:.1e}" for one in replayed)
            assert replayed and all(one.worst <= TOLERANCE for one in replayed), f"{provider}: {said}"
            lab.say(f"{provider}: {said}; {', '.join(_speed(lab, session, batch) for batch in BATCHES)}")
    return ""


def _speed(lab: Lab, session: Session, batch: int) -> str:
    """Of the middle one of RUNS runs, after a first one in which memory is taken and kernels are chosen."""
    program, times = lab.subject.bundle.program("ddim-50"), []
    for _ in range(RUNS + 1):
        begun = time.perf_counter()
        labels = [i % 10 for i in range(batch)]
        generate(lab.subject.bundle, labels, labels, program=program, output="latents", session=session, batch=batch)
        times.append(time.perf_counter() - begun)
    return f"batch {batch}: {1000 * sorted(times[1:])[RUNS // 2] / program.steps:.3f} ms a step"
