"""Answers that are also an exit code: 1 where something is not as it has to be."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, NoReturn

from .terminal import print_json, say

if TYPE_CHECKING:
    from ditedge.calibration.quality.record import GateResult
    from ditedge.runtime.inspection import InspectRequest


def warning(text: str) -> None:
    say(f"warning: {text}", err=True)


def leave_with_failures(failed: list[GateResult], *more: str) -> NoReturn:
    """A gate's limits that were not kept: exit code 1."""
    for line in (*(f"FAILED: {result.sentence}" for result in failed), *more):
        say(line, err=True)
    sys.exit(1)


def inspect_kernels(request: InspectRequest, as_json: bool) -> None:
    """`inspect --lint`, and of plans: with --strict 1 where attention is not fused."""
    from ditedge.runtime.inspection import kernels_of
    from ditedge.runtime.plans.lint import lint_lines

    found = kernels_of(request)
    print_json(asdict(found)) if as_json else say("\n".join(lint_lines(found)))
    if request.strict and not found.fused:
        sys.exit(1)
