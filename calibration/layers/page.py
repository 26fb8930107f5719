"""What `verify --layers --report` writes: one page that loads nothing, with the error along the depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from ditedge import __version__

from ...runtime.page import facts
from ...runtime.page import page as framed
from .record import GraphLayers, Layers, Measured, shown

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 310, 76, 18, 14, 60  # of the curve, in SVG units, as in a quality report
LABEL = 80  # room for a label, on a telephone, too
LEAST = 1e-7  # relative error of float32: what is below stands on the axis
OF_LAYERS = "circle.beyond{fill:var(--bad)}.limit{stroke:var(--bad);stroke-dasharray:6 5}tr.beyond td{color:var(--bad)}"


def page(layers: Layers) -> str:
    """The whole page. Everything that comes from a file (names of tensors and layers) is escaped."""
    title = f"{layers.b.name} against {layers.a.name}, layer by layer"
    passed = "pass" if layers.passed else "fail"
    findings = "".join(f"<li class={passed}>{escape(text)}</li>" for text in layers.sentences())
    parts = [
        f"<header><p class=kicker>ditedge layer report</p><h1>{escape(layers.b.name)} <span>({escape(layers.how)}) "
        f"against {escape(layers.a.name)}</span></h1><p class=lead>Relative error of every tensor, "
        f"||B - A|| / ||A||, in {escape(layers.what)}. A is in float32 on ONNX Runtime.</p></header>",
        f"<section><h2>Findings</h2><ul class=gates>{findings}</ul></section>",
        *(curve(graph, layers.tolerance) for graph in layers.graphs),
        *(_table(graph, layers.tolerance) for graph in layers.graphs),
        _unmatched(layers),
        _provenance(layers),
    ]
    body = "\n".join(filter(None, parts))
    return framed(title, body, f"\n{OF_LAYERS}")


def _provenance(layers: Layers) -> str:
    bundles = (("A", layers.a), ("B", layers.b))
    rows = [(name, f"{escape(one.name)}, manifest <code>{one.sha256[:16]}</code>") for name, one in bundles]
    return facts([*rows, ("Made by", f"ditedge {__version__}")])


def curve(graph: GraphLayers, tolerance: float) -> str:
    """The errors of a graph's tensors from its input to its output as inline SVG, on a logarithmic scale."""
    tensors = graph.compared
    if not tensors:
        return ""
    low, high = _powers(tensors, tolerance)

    def x(i: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (i / (len(tensors) - 1) if len(tensors) > 1 else 0.5)

    def y(value: float | None) -> float:
        power = math.log10(min(max(value or 0.0, 10.0**low), 10.0**high))
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (power - low) / (high - low)

    def line(values: Sequence[float | None], css: str) -> str:
        own = [(i, value) for i, value in enumerate(values) if tensors[i].point.own]
        return f'<polyline class="{css}" points="{" ".join(f"{x(i):.1f},{y(value):.1f}" for i, value in own)}"/>'

    def dots(css: str, chosen: Callable[[Measured], bool]) -> str:
        return "".join(
            f'<circle class="{css}" cx="{x(i):.1f}" cy="{y(tensor.error):.1f}" r="{1.4 if css == "all" else 2.6}">'
            f"<title>{_title(tensor)}</title></circle>"
            for i, tensor in enumerate(tensors)
            if chosen(tensor)
        )

    ticks = "".join(
        f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(10.0**p):.1f}" y2="{y(10.0**p):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y(10.0**p) + 4:.1f}" text-anchor="end">1e{p}</text>'
        for p in range(low, high + 1)
    )
    limit = f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tolerance):.1f}" y2="{y(tolerance):.1f}"/>'
    beyond = dots("beyond", lambda tensor: not (tensor.error or 0) <= tolerance)
    between = dots("all", lambda tensor: not tensor.point.own and (tensor.error or 0) <= tolerance)
    names = "".join(
        f'<text x="{x(i):.1f}" y="{HEIGHT - BOTTOM + 24}" text-anchor="middle">{escape(name)}</text>'
        for i, name in _blocks(tensors, x)
    )
    lines = line([tensor.worst for tensor in tensors], "worst") + line([tensor.error for tensor in tensors], "all")
    return (
        f"<section><h2>Error along the depth: {escape(graph.graph)}</h2><p class=note>Tensor by tensor, in the order "
        "of computation; the broken line is the tolerance, dots are tensors on the way to a layer. "
        '<span class="key all">output of a layer</span> <span class="key worst">its worst number</span></p>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="relative error along the depth">'
        f"{ticks}{limit}{names}{between}{lines}{beyond}</svg></section>"
    )


def _powers(tensors: list[Measured], tolerance: float) -> tuple[int, int]:
    """The powers of ten that the curve begins and ends with."""
    values = [v for t in tensors for v in (t.error, t.worst) if v is not None and math.isfinite(v) and v > LEAST]
    least, most = min([*values, tolerance]), max([*values, tolerance])
    low = math.floor(math.log10(least))
    return low, max(math.ceil(math.log10(most)), low + 1)


def _blocks(tensors: list[Measured], x: Callable[[int], float]) -> list[tuple[int, str]]:
    """Where to write which block begins, where the one before leaves room."""
    first: dict[str, int] = {}
    for i, tensor in enumerate(tensors):
        parts = tensor.point.layer.split(".")
        if len(parts) > 2 and parts[1].isdigit() and tensor.point.own:
            first.setdefault(f"{parts[0]} {parts[1]}".replace("blocks", "block"), i)
    shown: list[tuple[int, str]] = []
    for name, i in first.items():
        if not shown or x(i) - x(shown[-1][0]) >= LABEL:
            shown.append((i, name))
    return shown


def _title(tensor: Measured) -> str:
    return escape(f"{tensor.point.place}: {shown(tensor.error)}")


def _table(graph: GraphLayers, tolerance: float) -> str:
    rows = "".join(
        f"<tr{' class=beyond' if any(v is not None and not v <= tolerance for v in (row.before, row.error)) else ''}>"
        f"<th scope=row>{escape(row.layer)}</th>"
        + "".join(f"<td>{shown(value)}</td>" for value in (row.before, row.error, row.worst, row.jump))
        + "</tr>"
        for row in graph.rows()
    )
    heads = "".join(f"<th>{name}</th>" for name in ("", "On the way", "Error", "Worst", "Jump"))
    return (
        f"<section><h2>Layers: {escape(graph.graph)}</h2><div class=scroll><table><thead><tr>{heads}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div><p class=note>On the way: the largest error of a tensor between the layer "
        "before and this one. Jump: the error of a tensor less the largest of those that it is computed from.</p>"
        "</section>"
    )


def _unmatched(layers: Layers) -> str:
    rows = "".join(
        f"<tr><th scope=row>{escape(f'{graph}: {tensor.point.place}')}</th><td>{escape(tensor.reason)}</td></tr>"
        for graph, tensor in layers.unmatched
    )
    if not rows:
        return ""
    return f"<section><h2>Not compared</h2><div class=scroll><table><tbody>{rows}</tbody></table></div></section>"
