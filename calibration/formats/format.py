"""What a weight format has to say of itself. A format's file fills one of these in, as FORMAT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...runtime.errors import RequestError

if TYPE_CHECKING:
    from ..graph.linears import Linear

Ranges = Mapping[str, float]  # largest |x| of each linear's input, by name


@dataclass(frozen=True)
class Scheme:
    """How the linears of a step graph are written in one form: for the kernels of one runtime."""

    rewrite: Callable[[Any, list[Linear], Ranges], None]  # of these linears of an ir.Model, in place
    activations: str  # "static": rounded with scales from statistics; "per-token": on the fly; "float32": not rounded
    weights: str  # what shares a scale: "per-channel", "per-tensor", "blocks"
    ceiling: float  # of the tolerance derived from a golden trajectory's relative error (1.5 times the error)
    smoothing: float = 0.0  # SmoothQuant's alpha unless one is given


@dataclass(frozen=True)
class Quantised:
    """A format of few bits. Its activations may be rounded, too.

    limits: what the quality report allows where nobody says, by the names of `Gate`'s fields. The figures beside them
    are measured on the demo model, 32 images of 20 steps. PSNR leaves more room than drift does: networks with random
    weights make such contrasts that 2 % of drift are 22 dB.
    """

    bits: int  # of a weight
    schemes: Mapping[str, Scheme]  # by form
    limits: Mapping[str, float]
    first_gpu: int = 0  # NVIDIA's least compute capability that has the arithmetic: 89 is 8.9
    naive: Scheme | None = None  # the baseline to beat, bad on purpose

    def scheme(self, form: str) -> Scheme:
        """Raises RequestError, which lists the forms that there are."""
        if form not in self.schemes:
            raise RequestError(f"form '{form}': this precision is written for {', '.join(self.schemes)}")
        return self.schemes[form]


@dataclass(frozen=True)
class Half:
    """A float of 16 bits: matrix products and attention are in it, and float32 is where it is needed.

    tolerance: relative error of a golden trajectory at any step, every node rounded as 16-bit hardware rounds.
    """

    dtype: str  # as in a manifest: "float16"
    tolerance: float
    overflows: bool  # it ends far below float32: what exceeds it is looked for, and left in float32
