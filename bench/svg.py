"""Charts as files of their own."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 280, 64, 18, 34, 48
LINES = """<style>text{font:13px system-ui,sans-serif;fill:#5c6573}polyline{fill:none;stroke:#1f5fd0;stroke-width:2}
line{stroke:#d5d9e0}@media(prefers-color-scheme:dark){text{fill:#9aa4b2}polyline{stroke:#78a9ff}line{stroke:#3a414c}}
</style>"""


def standalone(svg: str, inside: str) -> str:
    """An inline <svg> as a file. inside: its style, and what is behind everything else."""
    head, _, rest = svg.partition(">")
    return head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + f">{inside}{rest}\n"


def line_chart(points: Sequence[tuple[float, float]], across: str, up: str) -> str:
    """One line over an axis from 0, as a file. across, up: what the axes are."""
    from ditedge.calibration.quality.curve import ticks_up_to

    end, highest = (max(point[i] for point in points) for i in (0, 1))
    right, top = [tick for tick in ticks_up_to(end) if tick <= end], ticks_up_to(highest)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / end

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top[-1]

    rules = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in top
    )
    below = "".join(
        f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{tick:g}</text>' for tick in right
    )
    middle = f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{across}</text>'
    side = f'<text x="8" y="16">{up}</text>'
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
    chart = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{up} over {across}">'
    return standalone(f'{chart}{rules}{below}{middle}{side}<polyline points="{path}"/></svg>', LINES)
