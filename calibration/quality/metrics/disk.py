"""Bytes of the graphs on disk, which the two contenders' entries have already."""

from __future__ import annotations

from collections.abc import Iterator

from ..metric import Card, Limit, Line, Metric, Quality, size


def _percent(quality: Quality) -> float:
    return 100 * float(quality.b.graph_bytes / quality.a.graph_bytes)


def _lines(quality: Quality) -> Iterator[Line]:
    yield "graphs on disk", size(quality.a.graph_bytes), size(quality.b.graph_bytes), ""


def _cards(quality: Quality) -> Iterator[Card]:
    yield "Size", f"{_percent(quality):.0f} %", f"{size(quality.b.graph_bytes)} of {size(quality.a.graph_bytes)}"


METRIC = Metric(
    fields={},
    start=lambda comparing: None,
    lines=_lines,
    cards=_cards,
    limits=(
        Limit(
            "max_size", "size", "size of B's graphs", " % of A's", "size of the new graphs, percent of the old ones'.",
            _percent,
        ),
    ),
)  # fmt: skip
