"""What the peaks allow, held against what was measured: by graph, and by kind of layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .counts import count
from .profiles import Profile


@dataclass(frozen=True)
class Work:
    """macs: multiply-adds by arithmetic; bytes: that have to come from memory."""

    macs: Mapping[str, int]
    bytes: int

    def seconds(self, peaks: Mapping[str, float]) -> tuple[float, float]:
        """At the peaks: of arithmetic, of memory."""
        return sum(macs / peaks[name] for name, macs in self.macs.items()), self.bytes / peaks["memory"]


@dataclass(frozen=True)
class Limit:
    """One graph, or one kind of layer in it. milliseconds as measured, and at the limit; binds: which limit that is."""

    name: str
    milliseconds: float
    gigamacs: dict[str, float]
    megabytes: float
    compute_ms: float
    memory_ms: float
    share: float = 1.0  # of the graph's time

    @property
    def binds(self) -> str:
        return "arithmetic" if self.compute_ms >= self.memory_ms else "memory"

    @property
    def fraction(self) -> float:
        """Of the limit that is reached: 1 is as good as it can be."""
        return max(self.compute_ms, self.memory_ms) / self.milliseconds if self.milliseconds else 0.0

    def json(self) -> dict[str, Any]:
        return asdict(self) | {"binds": self.binds, "fraction": round(self.fraction, 4)}


def limit_of(name: str, seconds: float, work: Work, peaks: Mapping[str, float], share: float = 1.0) -> Limit:
    compute, memory = work.seconds(peaks)
    giga = {arithmetic: macs / 1e9 for arithmetic, macs in work.macs.items()}
    return Limit(name, 1000 * seconds, giga, work.bytes / 1e6, 1000 * compute, 1000 * memory, share)


def limits_of(name: str, profile: Profile, peaks: Mapping[str, float]) -> tuple[Limit, list[Limit]]:
    """The graph, of which weights, inputs and outputs move at least once; and its kinds of layers, of which whatever
    they read and write does."""
    counts = [count(node) for node in profile.nodes]
    whole = Work(_sum(counted.macs for counted in counts), sum(counted.weights for counted in counts) + profile.bytes)
    spent = sum(node.seconds for node in profile.nodes) or 1.0
    kinds = []
    for kind in dict.fromkeys(counted.kind for counted in counts):
        of_kind = [i for i, counted in enumerate(counts) if counted.kind == kind]
        seconds = sum(profile.nodes[i].seconds for i in of_kind)
        moved = sum(counts[i].weights + counts[i].activations for i in of_kind)
        work = Work(_sum(counts[i].macs for i in of_kind), moved)
        kinds.append(limit_of(kind, seconds, work, peaks, seconds / spent))
    return limit_of(name, profile.seconds, whole, peaks), sorted(kinds, key=lambda kind: -kind.share)


def _sum(macs: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in macs:
        for name, number in each.items():
            total[name] = total.get(name, 0) + number
    return total
