"""A scatter of points as inline SVG, on logarithmic axes; upwards an even one where a value is not above 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 340, 76, 24, 16, 60  # in SVG units


@dataclass(frozen=True)
class Mark:
    """A point; noise: half the height of its bar, 0 is none."""

    x: float
    y: float
    name: str  # shown where the pointer rests
    kind: str  # its class in the style sheet
    noise: float = 0.0


def plot(marks: Sequence[Mark], line: Sequence[tuple[float, float]], across: str, up: str) -> str:
    """An <svg>; line: through some of the points. Marks whose x is not above 0 are left out."""
    shown = [mark for mark in marks if mark.x > 0 and math.isfinite(mark.x * mark.y)]
    if not shown:
        return "<p class=note>nothing to show</p>"
    heights = [mark.y for mark in shown]
    even = min(heights) <= 0
    x = _axis([mark.x for mark in shown], LEFT, WIDTH - RIGHT)
    y = _axis(heights, HEIGHT - BOTTOM, TOP, even)
    rules = "".join(_rule(tick, y) for tick in (even_ticks(heights) if even else ticks(heights)))
    numbers = "".join(
        f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 24}" text-anchor="middle">{tick:g}</text>'
        for tick in ticks([mark.x for mark in shown])
    )
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line)
    joined = f'<polyline class="line" points="{path}"/>' if len(line) > 1 else ""
    middle = (LEFT + WIDTH - RIGHT) / 2
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(up)} against {escape(across)}">{rules}'
        f"{numbers}{joined}{''.join(_dot(mark, x, y) for mark in shown)}"
        f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(across)}</text></svg>'
    )


def ticks(values: Sequence[float]) -> list[float]:
    """Round numbers (1, 2, 3, 5 of each power of ten; 10ths where they are close) within the range of the values."""
    low, high = min(values), max(values)
    for steps in ((1, 2, 3, 5), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [float(f"{step * 10.0**power:.3g}") for power in powers for step in steps]
        inside = [tick for tick in found if low * 0.98 <= tick <= high * 1.02]
        if len(inside) >= 3:
            return inside
    return inside or [float(f"{low:.2g}")]


def even_ticks(values: Sequence[float]) -> list[float]:
    """Three to seven round numbers within the range of the values, evenly spaced."""
    low, high = min(values), max(values)
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-9)))
    step = next(step * part for part in (1, 0.5, 0.2, 0.1) if (high - low) / (step * part) >= 3)
    return [round(i * step, 9) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _axis(values: Sequence[float], start: float, end: float, even: bool = False) -> Callable[[float], float]:
    """From a value to its place; a margin of a twentieth at both ends."""
    of = (lambda value: value) if even else math.log
    low, high = of(min(values)), of(max(values))
    low, high = (low - 0.5, high + 0.5) if high - low < 1e-9 else (low - (high - low) / 20, high + (high - low) / 20)
    return lambda value: start + (end - start) * (of(value) - low) / (high - low)


def _rule(tick: float, y: Callable[[float], float]) -> str:
    return (
        f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
    )


def _dot(mark: Mark, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    bar = ""
    if mark.noise > 0:
        low = max(mark.y - mark.noise, mark.y / 2)  # which a logarithmic axis has
        bar = (
            f'<line class="noise" x1="{x(mark.x):.1f}" x2="{x(mark.x):.1f}" y1="{y(low):.1f}" '
            f'y2="{y(mark.y + mark.noise):.1f}"/>'
        )
    title = f"<title>{escape(mark.name)}: {mark.x:.3g}, {mark.y:.4g}</title>" if mark.name else ""
    return f'<g>{title}{bar}<circle class="{mark.kind}" cx="{x(mark.x):.1f}" cy="{y(mark.y):.1f}" r="4"/></g>'
