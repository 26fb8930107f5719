"""Who is beaten by nobody: the front of (cost, distance), both better when smaller."""

from __future__ import annotations

import math
from collections.abc import Sequence

NEIGHBOURS = 1.3  # programs of up to so many times another's cost are its neighbours
GOOD_SHARE = 0.4  # of neighbours: the best go on to the next rung
FEW = 5  # fewer neighbours than this say nothing


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other is at least as good as in both and better in one, by rising cost.

    Of equal points the first stays; points that are not finite are on no front.
    """
    finite = [i for i, point in enumerate(points) if all(map(math.isfinite, point))]
    found: list[int] = []
    best = math.inf
    for i in sorted(finite, key=lambda i: (*points[i], i)):
        if points[i][1] < best:
            found.append(i)
            best = points[i][1]
    return found


def spread(costs: Sequence[float], count: int) -> list[int]:
    """Indices of at most `count` of rising costs, both ends among them, evenly spread by ratio."""
    if len(costs) <= count:
        return list(range(len(costs)))
    logs = [math.log(cost) for cost in costs]
    wanted = [logs[0] + i * (logs[-1] - logs[0]) / max(count - 1, 1) for i in range(count)]
    return sorted({min(range(len(logs)), key=lambda j: abs(logs[j] - want)) for want in wanted})


def promising(cost: float, distance: float, others: Sequence[tuple[float, float]]) -> bool:
    """Whether a program belongs to the better ones among those of about its cost.

    Optuna's pruners refuse studies of two objectives; with a budget there is one, and they do it.
    """
    near = [d for c, d in others if cost / NEIGHBOURS <= c <= cost * NEIGHBOURS]
    return len(near) < FEW or sum(d < distance for d in near) <= GOOD_SHARE * len(near)
