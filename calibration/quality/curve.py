"""The error along the trajectory as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .record import Quality

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 310, 76, 18, 14, 60  # of the curve, in SVG units


def curve(q: Quality) -> str:
    """Relative error over the steps as inline SVG: all images together, and the worst image."""
    relative, worst = [step.relative for step in q.steps], [step.worst for step in q.steps]
    ticks = ticks_up_to(max([value for value in (*relative, *worst) if value is not None], default=0.0))
    top = ticks[-1]
    count = len(q.steps)

    def x(i: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (i / (count - 1) if count > 1 else 0.5)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top

    def line(values: Sequence[float | None], css: str) -> str:
        points = [(x(i), y(value)) for i, value in enumerate(values) if value is not None]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        dots = "".join(f'<circle class="{css}" cx="{px:.1f}" cy="{py:.1f}" r="2.6"/>' for px, py in points)
        return f'<polyline class="{css}" points="{path}"/>' + (dots if count <= 30 else "")

    horizontal = "".join(
        f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>'
        for t in ticks
    )
    shown = sorted({round(i * (count - 1) / min(5, max(count - 1, 1))) for i in range(min(5, count - 1) + 1)})
    vertical = "".join(
        f'<text x="{x(i):.1f}" y="{HEIGHT - BOTTOM + 24}" text-anchor="middle">{q.steps[i].timestep:g}</text>'
        for i in shown
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    axis = f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">timestep, noise to image</text>'
    return (
        "<section><h2>Error along the trajectory</h2>"
        '<p class=note>Relative error of B\'s latents after each step, ||B - A|| / ||A||. <span class="key all">all '
        'images</span> <span class="key worst">worst image</span></p>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="relative error over timesteps">'
        f"{horizontal}{vertical}{axis}{line(worst, 'worst')}{line(relative, 'all')}</svg></section>"
    )


def ticks_up_to(largest: float) -> list[float]:
    """0 and up to five round numbers, the last not below `largest`."""
    if not 0 < largest < np.inf:
        return [0.0, 1.0]
    power = 10.0 ** np.floor(np.log10(largest / 4))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power * 5 >= largest)
    return [float(i * step) for i in range(int(np.ceil(largest / step - 1e-9)) + 1)]
