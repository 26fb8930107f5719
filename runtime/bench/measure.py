"""`bench`: contenders in turns -> a record with a row of each."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ditedge import __version__

from ..bundle.open import Bundle, open_bundle
from ..errors import DitedgeError, EngineError, RequestError
from ..loop.engine import EngineOptions
from ..replacing import scratch_folder
from ..report import Report, silent
from .contender import Wanted, bundle_contender
from .machine import this_machine
from .record import Record, Row, measured
from .request import BenchRequest, BenchSettings
from .turns import Laps, take_turns

ROUNDING = {"openvino-bf16": 0.1}  # drift that a provider may have of its own arithmetic
TOLERANCE = 0.01  # drift of one that computes in float32
MARGIN = 3.0  # of a bundle's own tolerance: that is for its golden trajectories, this for another seed


@dataclass(frozen=True)
class Contender:
    """What takes turns: a command whose process calls `turns.serve`.

    drift_file: the latents that it leaves; limit: how far they may be off the first one's.
    failure: why there is nothing to run.
    """

    name: str
    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    megabytes: float | None = None
    drift_file: Path | None = None
    limit: float = np.inf
    failure: str = ""


def bench(request: BenchRequest, report: Report = silent) -> Record:
    """Measures every bundle on every provider. Raises RequestError for what cannot be asked; failures are rows."""
    if not request.engines:
        raise RequestError("nothing to measure: give --engine BUNDLE, or several")
    settings, keys = request.settings, request.trusted_keys or None
    first = open_bundle(request.engines[0], trusted_keys=keys)
    others = {path: opened_or_why(path, keys) for path in {*request.engines[1:]} - {request.engines[0]}}
    opened = {request.engines[0]: first} | others
    with scratch_folder() as scratch:
        pairs = [
            (path, provider)
            for path in request.engines
            for provider in (("plan",) if path.suffix == ".plan" else request.providers or ("cpu",))
        ]
        contenders = [
            contender_of(f"{path.absolute().name} on {provider}", path, opened[path], provider, settings, first,
                         scratch / f"{i}.npy")
            for i, (path, provider) in enumerate(pairs)
        ]  # fmt: skip
        what = f"one step of {first.manifest.name}, {first.program().name}"
        return measure(contenders, settings, what, first, report)


def opened_or_why(path: Path, keys: Iterable[Path] | None = None) -> Bundle | DitedgeError:
    """The bundle, or why it cannot be opened, which is no reason not to measure others. keys: as of `open_bundle`."""
    try:
        return open_bundle(path, trusted_keys=keys)
    except DitedgeError as error:
        return error


def contender_of(
    name: str,
    path: Path,
    bundle: Bundle | DitedgeError,
    provider: str,
    settings: BenchSettings,
    first: Bundle,
    drift_file: Path,
) -> Contender:
    """A bundle, as `path` was opened, on a provider ("plan": what the path names)."""
    if isinstance(bundle, DitedgeError):
        return Contender(name, failure=str(bundle))
    name_of = "cpu" if provider == "plan" else provider
    options = EngineOptions(name_of, settings.threads, settings.spin, cuda_graphs=settings.cuda_graphs)
    guidance = guidance_of(settings, first)
    wanted = Wanted(settings.batch, guidance, drift_steps=settings.drift_steps, drift_file=str(drift_file))
    command = bundle_contender(path, options, wanted, bundle.sha256)
    graphs = [graph for graph in ("conditioner", "context", "step") if graph in bundle.manifest.graphs]
    megabytes = sum(bundle.manifest.graph_bytes(graph) for graph in graphs) / 1e6
    kept = drift_file if settings.drift_steps else None
    return Contender(name, command, {}, megabytes, kept, _limit(bundle, provider))


def guidance_of(settings: BenchSettings, first: Bundle) -> float:
    return first.manifest.defaults.guidance if settings.guidance is None else settings.guidance


def _limit(bundle: Bundle, provider: str) -> float:
    own = max((golden.tolerance for golden in bundle.manifest.golden), default=0.0)
    return max(TOLERANCE, ROUNDING.get(provider, 0.0), MARGIN * own)


def measure(
    contenders: Sequence[Contender], settings: BenchSettings, what: str, first: Bundle, report: Report = silent
) -> Record:
    """All of them, the first one in every group of those that are in memory together. Raises EngineError when the
    first one fails: there is nothing to hold the others against."""
    machine, program = this_machine(), first.program()
    head, rows = contenders[0], [_failed(other) for other in contenders]
    others = [i for i, other in enumerate(contenders) if i and not other.failure]
    size = settings.at_once - 1
    groups = [others[i : i + size] for i in range(0, len(others), size)] or [[]]
    rounds, evaluations = 0, 0
    for number, group in enumerate(groups):
        found = _turns([head, *(contenders[i] for i in group)], settings, report)
        base = found[0]
        if isinstance(base, EngineError):
            raise EngineError(f"{head.name}, which the others are held against: {base}")
        rounds, evaluations = len(base.calls["step"]), int(base.facts.get("evaluations", 0))
        for i, laps in zip(([0] if not number else []) + group, found[1 if number else 0 :], strict=True):
            rows[i] = _row(contenders[i], laps, base, head, settings.batch, program.steps)
    return Record(
        made_by=f"ditedge {__version__}",
        date=datetime.date.today().isoformat(),
        machine=machine,
        what=what,
        batch=settings.batch,
        threads=settings.threads,
        evaluations=evaluations,
        steps=program.steps,
        rounds=rounds,
        rows=rows,
    )


def _turns(group: Sequence[Contender], settings: BenchSettings, report: Report) -> list[Laps | EngineError]:
    return take_turns(
        [contender.command for contender in group],
        settings.repeats,
        report,
        seconds=settings.seconds,
        environments=[contender.environment for contender in group],
    )


def _failed(contender: Contender) -> Row:
    return Row(name=contender.name, status="failed", reason=contender.failure, megabytes=contender.megabytes)


def _row(contender: Contender, laps: Laps | EngineError, base: Laps, head: Contender, batch: int, steps: int) -> Row:
    if isinstance(laps, EngineError):
        return _failed(replace(contender, failure=str(laps)))
    drift = None if contender is head else _drift(head.drift_file, contender.drift_file)
    drift = laps.facts.get("drift", drift)  # of one that has measured it itself
    limit, megabytes = contender.limit, contender.megabytes
    return measured(contender.name, laps, base, batch, steps, drift=drift, limit=limit, megabytes=megabytes)


def _drift(first: Path | None, other: Path | None) -> float | None:
    """None where one of them left no latents; infinite where they are not of one shape, or not finite."""
    if first is None or other is None or not first.is_file() or not other.is_file():
        return None
    a, b = np.load(first).astype(np.float64), np.load(other).astype(np.float64)
    if a.shape != b.shape or not np.isfinite(b).all():
        return float("inf")
    return float(np.linalg.norm(b - a) / max(np.linalg.norm(a), 1e-30))
