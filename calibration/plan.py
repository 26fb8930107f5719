"""What `quantize` was asked, with every default filled in, before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

from ..runtime.bundle.open import Bundle
from ..runtime.errors import RequestError
from ..runtime.samplers.program import Program
from .formats import quantised_format
from .formats.format import Quantised, Scheme
from .options import QuantizeOptions


@dataclass(frozen=True)
class Plan:
    """smoothing: SmoothQuant's alpha, 0 is off. program: whose trajectories are calibrated on."""

    format: Quantised
    scheme: Scheme
    smoothing: float
    program: Program

    @property
    def needs_statistics(self) -> bool:
        return self.scheme.activations == "static" or self.smoothing > 0


def plan_of(bundle: Bundle, options: QuantizeOptions) -> Plan:
    """Raises RequestError for options that do not go together."""
    chosen = quantised_format(options.precision)
    scheme = chosen.scheme(options.form)
    if options.naive:
        if chosen.naive is None or options.smoothing or options.keep or options.budget:
            raise RequestError("--naive is plain static int8, with nothing smoothed, kept or chosen: leave them out")
        scheme = chosen.naive
    if options.smoothing is not None and not 0 <= options.smoothing <= 1:
        raise RequestError(f"--smoothing {options.smoothing} is not between 0 and 1")
    if options.smoothing and scheme.activations == "float32":
        raise RequestError(f"--smoothing is for activations, which {options.precision} does not round: leave it out")
    if options.drift_budget is not None and options.keep_count is not None:  # a wrong budget is refused now, too
        raise RequestError("--keep and --budget both say how many layers stay in float32: give one of them")
    _check_gpu(options, chosen)
    if options.program is not None:
        if options.sampler is not None or options.steps is not None:
            raise RequestError(f"program '{options.program}' is ready-made: leave --sampler and --steps out")
        program = bundle.program(options.program)
    else:
        program = bundle.program(sampler=options.sampler, steps=options.steps)
    return Plan(chosen, scheme, scheme.smoothing if options.smoothing is None else options.smoothing, program)


def _check_gpu(options: QuantizeOptions, chosen: Quantised) -> None:
    if options.arch is None:
        return
    number = options.arch.lower().removeprefix("sm").replace("_", "").replace(".", "")
    if not number.isdigit():
        raise RequestError(f"--arch {options.arch} is not a GPU architecture such as sm86 or sm89")
    if int(number) < chosen.first_gpu:
        name = options.precision
        raise RequestError(
            f"--precision {name}: sm{number} has no {name.upper()} arithmetic, which begins with sm{chosen.first_gpu}; "
            "use int8"
        )
