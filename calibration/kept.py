"""Which linears of the step graph stay in float32: protected ones, those that are named, those that measuring finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ..runtime.bundle.open import Bundle
from ..runtime.errors import RequestError
from ..runtime.report import Report
from ..runtime.samplers.program import Program
from .graph.linears import Linear, find_linears
from .graph.surgery import load_graph
from .options import QuantizeOptions
from .pool import Pool
from .quality.limits import check_something_is_asked
from .statistics.sensitivity import Rounding, Sensitivity, drift, fewest_kept, latents_of, layer_sensitivities

# Of the step graph: where latents leave, in facebookresearch/DiT and its relatives, then in diffusers; and where they
# come in, if no convolution takes them.
PROTECTED = ("final_layer.linear", "proj_out", "norm_out.linear_2", "all_final_layer.*.linear",
             "x_embedder", "pos_embed.proj", "all_x_embedder.*")  # fmt: skip


def select_linears(linears: list[Linear], options: QuantizeOptions) -> tuple[list[str], list[str]]:
    """Names (to quantise, kept in float32). keep: names, or the beginning or the end of some ("blocks.0", "fc2").

    Raises RequestError for a name that fits none.
    """
    names = [linear.name for linear in linears]
    for wanted in options.keep:
        if not any(_matches(name, wanted) for name in names):
            raise RequestError(f"--keep-layer {wanted}: no such layer; there are {', '.join(names)}")
    protected = PROTECTED if options.protect and not options.naive else ()
    kept = [
        name
        for name in names
        if any(fnmatchcase(name, pattern) for pattern in protected)
        or any(_matches(name, wanted) for wanted in options.keep)
    ]
    return [name for name in names if name not in kept], kept


def _matches(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(f"{wanted}.") or name.endswith(f".{wanted}")


@dataclass(frozen=True)
class Trial:
    """What the choice is measured with. source: the float bundle; exact: the same network, smoothed.

    write: the step graph with these linears in float32, into `folder`, where the new bundle's other graphs are.
    """

    source: Bundle
    exact: Bundle
    pool: Pool
    program: Program
    folder: Path
    rounding: Rounding
    bits: int
    write: Callable[[list[str]], None]


def choose_kept(trial: Trial, options: QuantizeOptions, report: Report) -> tuple[list[str], list[Sensitivity]]:
    """Names of the linears to leave in float32, and the measured ranking where one was asked for."""
    linears = find_linears(load_graph(trial.exact.graph_file("step")))
    chosen, kept = select_linears(linears, options)
    if options.keep_count is None and options.budget is None:
        return kept, []
    ranked = layer_sensitivities(trial.exact, trial.pool, trial.program, chosen, trial.rounding, trial.bits, report)
    order = [entry.layer for entry in ranked]
    count = min(options.keep_count or 0, len(order))
    if options.drift_budget is not None:
        count = _fewest_within(options.drift_budget, trial, kept, order, report)
    check_something_is_asked(trial.source.folder, [linear.name for linear in linears], kept + order[:count])
    return kept + order[:count], ranked


def _fewest_within(budget: float, trial: Trial, kept: list[str], order: list[str], report: Report) -> int:
    """How many of `order`, besides `kept`, hold the measured drift within the budget. Raises RequestError."""
    reference = latents_of(trial.source, trial.pool, trial.program)

    def drift_with(more: list[str]) -> float:
        trial.write([*kept, *more])
        rounded = Bundle(trial.folder, trial.source.manifest, "")
        measured = drift(latents_of(rounded, trial.pool, trial.program), reference)
        report(f"{len(more)} layers kept: drift {measured:.4f}")
        return measured

    found = fewest_kept(order, drift_with, budget)
    if found is None:
        raise RequestError(
            f"--budget drift={budget:g}: not reached even with every linear in float32, because the conditioner's "
            "weights are rounded, too; allow more"
        )
    return found[0]
