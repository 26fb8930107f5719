"""What a quantised bundle may lose when nobody says, and that its graphs hold what its manifest claims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from ...runtime.bundle.open import Bundle
from ...runtime.errors import BundleError, RequestError
from ..graph.linears import find_linears
from ..graph.surgery import load_graph
from .gate import LIMITS, Gate, will_measure
from .request import CompareRequest


def gate_or_default(gate: Gate, limits: Mapping[str, float], request: CompareRequest, bundle: Bundle) -> Gate:
    """`gate`, with the format's own limits where it says nothing of what the comparison will measure."""
    measured = will_measure(request, bundle)
    unsaid = {
        name: value
        for name, value in limits.items()
        if getattr(gate, name) is None and LIMITS[name].available(measured)
    }
    return replace(gate, **unsaid)


def check_something_is_asked(source: Path, linears: Iterable[str], kept: Iterable[str]) -> None:
    """Raises RequestError where no linear would be quantised. linears: names of all float ones of the step graph."""
    names = set(linears)
    if not names:
        raise RequestError(f"{source}: its step graph has no linear layer in float32, so there is nothing to quantise")
    if not names - set(kept):
        raise RequestError(f"{source}: every linear layer would stay in float32: keep fewer, or allow more drift")


def check_rewritten(path: Path, asked: Iterable[str]) -> None:
    """Raises BundleError if a linear `asked` for still has a float weight in the graph file at `path`."""
    names = set(asked)
    left = sorted(names & {linear.name for linear in find_linears(load_graph(path))})
    if left:
        raise BundleError(
            f"{path.name}: {len(left)} of {len(names)} linears kept their float weights, {left[0]} among them; "
            "nothing was written"
        )
