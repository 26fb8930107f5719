"""`bench --report`: the record as one page that loads nothing from outside, with figures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..files import write_text
from ..page import facts, page
from .record import Record, Row
from .table import HEADS, PART_HEADS, cells, figures, lead, part_cells, ratio, reasons

WIDTH, BAR, GAP = 720, 20, 12  # of a figure, in SVG units
STYLE = """
rect.all{fill:var(--all)}rect.worst{fill:var(--worst)}rect.good{fill:var(--good)}rect.bad{fill:var(--bad)}
.whisker{stroke:var(--ink);stroke-width:1.5}.failed td,.failed th,.wrong td{color:var(--bad)}
.key.good::before{background:var(--good)}.key.bad::before{background:var(--bad)}
@media (max-width:640px){svg text{font-size:15px}}"""
SHARES = {"conditioner": "good", "context": "bad", "step": "all", "decoder": "worst"}  # colours of an image's parts


def write_page(record: Record, path: Path) -> None:
    """Atomically. Raises RequestError."""
    write_text(path, page_of(record))


def page_of(record: Record) -> str:
    """Everything that comes from a file (names, reasons) is escaped."""
    what, where = lead(record)
    ran = [row for row in record.rows if "step" in row.parts]
    parts = [
        f"<header><p class=kicker>ditedge benchmark</p><h1>{escape(record.what)}</h1>"
        f"<p class=lead>{escape(what)}.</p><p class=lead>{escape(where)}</p></header>",
        _section("One step", step_chart(ran), "Median of all calls; the line ends at the 95th percentile. Beside it "
                 "how much faster than the first contender, round by round, least and most."),
        _section("One image", _images(ran, record.steps), "What its milliseconds are spent on."
                 + "".join(f' <span class="key {css}">{name}</span>' for name, css in SHARES.items())),
        _section("Everything", table(HEADS, [cells(row) for row in record.rows], [row.status for row in record.rows]),
                 "Drift: relative error of the latents of a short run against the first contender's. Loop: the share "
                 "of a step outside the engine. First: the first call of all. Busy: processors in use during a step."),
        _section("Part by part", table(PART_HEADS, [part_cells(row) for row in ran]), "Median of a call (95th "
                 "percentile): the conditioner of a whole program, the context of a batch's prompts, one step, the "
                 "pictures of a batch."),
        _reasons(record.rows),
        facts([("Made by", f"{escape(record.made_by)}, {record.date}")]),
    ]  # fmt: skip
    return page(f"Benchmark: {record.what}", "\n".join(filter(None, parts)), STYLE)


def _section(title: str, body: str, note: str) -> str:
    return f"<section><h2>{title}</h2><p class=note>{note}</p>{body}</section>" if body else ""


def _reasons(rows: Sequence[Row]) -> str:
    found = "".join(f"<li class=fail>{escape(reason)}</li>" for reason in reasons(rows))
    return f"<section><h2>What did not work</h2><ul class=gates>{found}</ul></section>" if found else ""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], css: Sequence[str] = ()) -> str:
    """The first cell of a row is its name."""
    inside = "".join(
        f'<tr class="{css[i] if css else "ok"}"><th scope=row>{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for i, row in enumerate(rows)
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{inside}</tbody></table></div>"


def step_chart(rows: Sequence[Row]) -> str:
    bars = []
    for row in rows:
        step = row.parts["step"]
        text = f"{figures(step.median_ms)} ms" + (f", {ratio(row)}" if row.ratio is not None else "")
        bars.append((row.name, [(step.median_ms, "all")], step.p95_ms, text))
    return bar_chart(bars, "milliseconds of one step")


def _images(rows: Sequence[Row], steps: int) -> str:
    """Of the first image of each: the parts of a batch, the steps as often as they are taken."""
    bars = []
    for row in rows:
        if row.image is None:
            continue
        times = {name: row.parts[name].median_ms for name in SHARES if name in row.parts}
        times["step"] *= steps
        scale = row.image.median_ms / sum(times.values())  # a batch's to one image's
        shares = [(ms * scale, SHARES[name]) for name, ms in times.items()]
        bars.append((row.name, shares, 0.0, f"{figures(row.image.median_ms)} ms"))
    return bar_chart(bars, "milliseconds of one image")


def bar_chart(bars: Sequence[tuple[str, Sequence[tuple[float, str]], float, str]], label: str) -> str:
    """Inline SVG. bars: a name, lengths with their CSS class one after another, the end of a line, what to write."""
    if not bars:
        return ""
    most = max(max(sum(length for length, _ in lengths), end) for _, lengths, end, _ in bars) or 1.0
    height, drawn = len(bars) * (2 * BAR + GAP), []

    def x(value: float) -> float:
        return (WIDTH - 2) * value / most

    for i, (name, lengths, end, text) in enumerate(bars):
        top, at = i * (2 * BAR + GAP), 0.0
        drawn.append(
            f'<text x="0" y="{top + BAR - 5}">{escape(name)}</text>'
            f'<text x="{WIDTH}" y="{top + BAR - 5}" text-anchor="end">{escape(text)}</text>'
        )
        for length, css in lengths:
            place = f'x="{x(at):.1f}" y="{top + BAR}" width="{max(x(length), 0.5):.1f}" height="{BAR}"'
            drawn.append(f'<rect class="{css}" {place}/>')
            at += length
        if end > at:
            middle = top + BAR + BAR // 2
            drawn.append(f'<line class="whisker" x1="{x(at):.1f}" x2="{x(end):.1f}" y1="{middle}" y2="{middle}"/>')
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{"".join(drawn)}</svg>'
