"""About how long a quality report will take, from what the golden trajectories took a moment ago."""

from __future__ import annotations

from ...runtime.bundle.open import Bundle
from ...runtime.loop.verify import read_golden
from ...runtime.report import duration
from ...runtime.samplers.program import Program
from .request import CompareRequest


def cost_of_report(bundle: Bundle, request: CompareRequest, replayed: float) -> str:
    """In words, for the user to know beforehand. replayed: seconds that all golden trajectories took on B, or 0."""
    steps = bundle.program(sampler=request.sampler, steps=request.steps).steps
    said = f"{request.count} image(s) of {steps} steps with both networks"
    known = golden_evaluations(bundle)
    seconds = replayed / max(1, known) * report_evaluations(bundle, request)
    return f"{said}, about {duration(seconds)}" if known and replayed else said


def golden_evaluations(bundle: Bundle) -> int:
    """Evaluations of the network that replaying all golden trajectories takes. Raises BundleError."""
    total = 0
    for golden in bundle.manifest.golden:
        program = bundle.program(golden.program)
        images = len(read_golden(bundle, golden, program.steps)["z"])
        total += images * _evaluations_of_an_image(program, golden.guidance)
    return total


def report_evaluations(bundle: Bundle, request: CompareRequest) -> int:
    """Evaluations, of either network, that `compare_bundles` takes with `bundle` as A."""
    program = bundle.program(sampler=request.sampler, steps=request.steps)
    guidance = bundle.manifest.defaults.guidance if request.guidance is None else request.guidance
    one_batch = min(request.batch, request.count)
    of_a = one_batch if request.sample_set is not None else request.count
    others = of_a if request.features is not None else one_batch
    timed = 2 * request.speed_rounds * request.speed_batch * 2
    return (of_a + others + request.count) * _evaluations_of_an_image(program, guidance) + timed


def _evaluations_of_an_image(program: Program, guidance: float) -> int:
    """One a step, two where it is guided."""
    return program.steps + (int((program.guidance != 0).sum()) if guidance != 1 else 0)
