"""What a quantised bundle may lose when nobody says, and that its graphs hold what its manifest claims."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ...runtime.errors import BundleError, RequestError
from ...runtime.loop.verify import LARGEST_ERROR
from ..graph.linears import find_linears
from ..graph.surgery import load_graph
from .record import Gate

# Measured on the demo model, 32 images of 20 steps: int8 3.5 % and 36 dB (naive 6 % and 31 dB), fp8 7 % and 30 dB, int4
# 13 % and 24 dB. Kernels that summed wrongly made int8 drift 20 %, at 20.6 dB. PSNR leaves more room than drift does:
# networks with random weights make such contrasts that 2 % of drift are 22 dB.
DEFAULT_GATES = {
    "int8": Gate(max_drift=0.10, min_psnr=26),
    "fp8": Gate(max_drift=0.12, min_psnr=21),
    "int4": Gate(max_drift=0.18, min_psnr=20),
}
# Of the tolerance derived from a golden trajectory's relative error (1.5 times the error). At worst, on the demo and
# two latent and pixel models of random weights: int8 0.07 (naive 0.29), fp8 0.18, int4 0.27; wrong sums: 0.38.
CEILINGS = {"int8": 0.2, "fp8": 0.3, "int4": LARGEST_ERROR}


def ceiling(precision: str, weights: str) -> float:
    """Of a tolerance. Weights with one scale per tensor are --naive: bad on purpose, the baseline to beat."""
    return LARGEST_ERROR if weights == "per-tensor" else CEILINGS[precision]


def gate_or_default(gate: Gate, precision: str, *, pictures: bool) -> Gate:
    """`gate`, with the precision's own limits on drift and PSNR where it says nothing. pictures: there is a decoder."""
    default = DEFAULT_GATES[precision]
    drift = default.max_drift if gate.max_drift is None else gate.max_drift
    psnr = default.min_psnr if gate.min_psnr is None and pictures else gate.min_psnr
    return replace(gate, max_drift=drift, min_psnr=psnr)


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
