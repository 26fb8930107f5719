"""A record in words: the cells that the terminal's table and the page's show."""

from __future__ import annotations

from collections.abc import Iterable

from .record import Record, Row, Timing

HEADS = ("contender", "status", "MB", "drift", "step ms", "p95", "image ms", "images/s", "against the first",
         "loop", "load s", "first ms", "peak MB", "busy")  # fmt: skip
PART_HEADS = ("contender", "conditioner ms", "context ms", "step ms", "decoder ms")


def lead(record: Record) -> list[str]:
    """What was measured, on what."""
    machine = record.machine
    threads = f"{record.threads} thread(s)" if record.threads else "all cores"
    load = "" if machine.load is None else f", load {machine.load:g}"
    return [
        f"{record.what}: batch {record.batch}, {record.evaluations} evaluations a step, {record.steps} steps an image, "
        f"{record.rounds} rounds in turns, {threads}",
        f"{machine.processor}, {machine.processors} processors ({machine.kernels}), {machine.memory_gigabytes:g} GB"
        f"{load}{f', {machine.gpu}' if machine.gpu else ''}; {record.made_by}, {record.date}",
    ]


def cells(row: Row) -> list[str]:
    """In the order of HEADS."""
    step = row.parts.get("step")
    return [
        row.name,
        row.status,
        _number(row.megabytes, "{:.1f}"),
        _number(row.drift, "{:.1e}"),
        milliseconds(step),
        "" if step is None else figures(step.p95_ms),
        milliseconds(row.image),
        _number(row.images_per_second, "{:.3g}"),
        ratio(row),
        _number(row.loop_share, "{:.1%}"),
        _number(row.load_seconds, "{:.2f}"),
        "" if row.first_ms is None else figures(row.first_ms),
        _number(row.peak_megabytes, "{:.0f}"),
        _number(row.busy, "{:.1f}"),
    ]


def part_cells(row: Row) -> list[str]:
    """In the order of PART_HEADS: median (95th percentile)."""
    found = (row.parts.get(head.partition(" ")[0]) for head in PART_HEADS[1:])
    return [row.name, *("" if t is None else f"{figures(t.median_ms)} ({figures(t.p95_ms)})" for t in found)]


def reasons(rows: Iterable[Row]) -> list[str]:
    """Of what failed, or computes something else."""
    return [f"{row.name}: {row.status}: {row.reason}" for row in rows if row.status != "ok"]


def ratio(row: Row) -> str:
    """1.49x (1.46 to 1.52)"""
    found = row.ratio
    return "" if found is None else f"{found.median:.2f}x ({found.least:.2f} to {found.most:.2f})"


def milliseconds(timing: Timing | None) -> str:
    return "" if timing is None else figures(timing.median_ms)


def figures(value: float) -> str:
    """Three or more that count: 0.0123, 1.23, 12.3, 1234"""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
