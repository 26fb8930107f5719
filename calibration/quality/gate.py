"""The gate: the limits that a comparison must keep, and the sentence for each that it does not."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, make_dataclass
from typing import Any

from ...runtime.bundle.open import Bundle
from ...runtime.errors import DitedgeError, RequestError
from ...runtime.options import option
from .metric import Limit, Measured
from .metrics import METRICS
from .pictures import has_pictures
from .record import GateResult, Quality
from .request import CompareRequest

LIMITS = {limit.option: limit for metric in METRICS.values() for limit in metric.limits}
_Limits: Any = make_dataclass(
    "_Limits",
    [
        (name, float | None, field(default=None, metadata=option(limit.flag, help=f"Gate: {limit.help}")))
        for name, limit in LIMITS.items()
    ],
    frozen=True,
)


@dataclass(frozen=True)
class Gate(_Limits):
    """Limits on what B may lose against A, one field for each of LIMITS; None is no limit."""


class GateFailed(DitedgeError):
    """A bundle that does not keep its limits."""

    def __init__(self, failed: list[GateResult]) -> None:
        super().__init__("; ".join(result.sentence for result in failed))
        self.failed = failed


def limits_of(gate: Gate) -> list[tuple[Limit, float]]:
    """Those that are set."""
    found = [(limit, getattr(gate, name)) for name, limit in LIMITS.items()]
    return [(limit, value) for limit, value in found if value is not None]


def will_measure(request: CompareRequest, *bundles: Bundle) -> Measured:
    """What comparing these bundles will measure."""
    return Measured(
        features=request.features is not None,
        reference=request.reference is not None,
        pictures=has_pictures(*bundles),
        speed=request.speed_rounds > 0,
        classes=all(bundle.manifest.text is None for bundle in bundles),
    )


def check_gate_can_be_measured(gate: Gate, request: CompareRequest, *bundles: Bundle) -> None:
    """Raises RequestError, before anything is sampled, for a limit on something that will not be measured."""
    _check_available(gate, will_measure(request, *bundles))


def _check_available(gate: Gate, measured: Measured) -> None:
    for limit, _ in limits_of(gate):
        if not limit.available(measured):
            raise RequestError(f"{limit.flag} needs {limit.needs}")


def check_gate(quality: Quality, gate: Gate) -> list[GateResult]:
    """One result per limit that is set; an image of B that is not finite fails every gate, and one with no limits, too.

    Raises RequestError for a limit on something that was not measured.
    """
    features = quality.features
    measured = Measured(
        features=features is not None,
        reference=features is not None and features.reference is not None,
        pictures=quality.pixels is not None,
        speed=quality.speed is not None,
        classes=not quality.settings.prompts,
    )
    _check_available(gate, measured)
    broken: int = quality.drift.broken
    sentence = f"number of images that are not finite is {broken}, at most 0 is allowed"
    finite = GateResult(name="finite images", limit=0, measured=broken, passed=not broken, sentence=sentence)
    return [finite, *(_result(limit, value, limit.measured(quality)) for limit, value in limits_of(gate))]


def _result(limit: Limit, value: float, measured: float | None) -> GateResult:
    passed = measured is not None and (measured >= value if limit.is_least else measured <= value)
    said = "not finite" if measured is None else f"{measured:.4g}{limit.unit}"
    if measured is not None and math.isinf(measured):
        said, measured = "infinite", None
    asked = f"{'at least' if limit.is_least else 'at most'} {value:g}{limit.unit} is allowed ({limit.flag})"
    text = f"{limit.what} is {said}, {asked}"
    return GateResult(name=limit.name, limit=value, measured=measured, passed=passed, sentence=text)
