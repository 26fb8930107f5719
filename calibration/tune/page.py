"""A search as a page: the front as a picture, its programs' pictures side by side, the table. Nothing from outside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from ...runtime.page import cards, facts, page
from ..quality.report import data_uri
from .plot import Mark, plot
from .record import Found, Tuned

PICTURES = 12  # of each program
COLUMNS = 4
OWN_STYLE = """
.shown{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:14px}
svg .tried{fill:var(--soft);opacity:.35}svg .found{fill:var(--all)}svg .default{fill:var(--worst)}
svg .noise{stroke:var(--all);stroke-width:1.6}svg .line{fill:none;stroke:var(--all);stroke-width:2}
.key.default::before{background:var(--worst)}.key.tried::before{background:var(--soft)}
""".strip()


def tune_page(tuned: Tuned, pictures: Sequence[np.ndarray]) -> str:
    """pictures: uint8 [n, h, w, 1 or 3] of the default program, then of each that was found. Names are escaped."""
    title = f"{' and '.join(tuned.engines)}: programs found"
    body = "\n".join(
        filter(None, [_head(tuned), _cards(tuned), _front(tuned), _shown(tuned, pictures), _table(tuned), _how(tuned)])
    )
    return page(title, body, OWN_STYLE)


def _head(tuned: Tuned) -> str:
    limit = f"within {escape(tuned.budget)} an image" if tuned.budget else "along the front of cost and distance"
    return (
        f"<header><p class=kicker>ditedge tune</p><h1>{escape(' and '.join(tuned.engines))}</h1>"
        f"<p class=lead>The best programs {limit}, of {tuned.trials} that were tried. Each figure is of "
        f"{tuned.rungs[2]} pictures from seed {tuned.seed} on, which the search never saw.</p></header>"
    )


def _cards(tuned: Tuned) -> str:
    if not tuned.programs:
        return ""
    best, base = min(tuned.programs, key=lambda one: one.figures.distance), tuned.baseline
    rows = [
        ("Distance", f"{best.figures.distance:.3g}", f"{base.name}: {base.figures.distance:.3g}" if base else ""),
        ("Passes", str(best.passes), f"{base.name}: {base.passes}" if base else ""),
        ("An image", _time(best.seconds), f"{base.name}: {_time(base.seconds)}" if base else ""),
    ]
    if base is not None:
        rows.append(("Faster", f"{base.seconds / best.seconds:.1f}x", f"than {base.name}"))
    return cards((name, value, escape(note)) for name, value, note in rows)


def _front(tuned: Tuned) -> str:
    measured = [
        Mark(one.seconds, one.figures.distance, _called(one), "found", one.figures.noise) for one in tuned.measured
    ]
    marks = [
        *measured,
        *(Mark(one.seconds, one.figures.distance, one.name, "default", one.figures.noise) for one in _base(tuned)),
    ]
    front = [(one.seconds, one.figures.distance) for one in tuned.programs if one.on_front]
    tried = [Mark(seconds, distance, "", "tried") for seconds, distance in tuned.trial_points]
    found = plot(marks, sorted(front), "seconds of one image on this machine", "Frechet distance")
    search = plot(
        tried, [], "seconds of one image, from the cost of its steps", "Frechet distance, of endlessly many pictures"
    )
    return (
        "<section><h2>The front</h2><p class=note>Frechet distance to "
        f"{escape(tuned.judged.reference)}, lower is better; bars are one standard error of the seeds. "
        '<span class="key all">found</span> <span class="key default">the default program</span></p>'
        f"{found}</section><section><h2>What was tried</h2><p class=note>Of {tuned.trials} programs {tuned.pruned} "
        f"ended after {tuned.rungs[0]} pictures. These made {tuned.rungs[1]}, from which "
        f'the distance of endlessly many is estimated. <span class="key tried">a trial</span></p>{search}</section>'
    )


def _shown(tuned: Tuned, pictures: Sequence[np.ndarray]) -> str:
    if not pictures:
        return ""
    figures = "".join(
        f'<figure><img alt="pictures of {escape(one.name)}" src="{data_uri(images, COLUMNS)}"><figcaption>'
        f"<b>{escape(_called(one))}</b> {one.passes} passes, {_time(one.seconds)}, {one.figures.distance:.3g}"
        "</figcaption></figure>"
        for one, images in zip((*_base(tuned), *tuned.programs), pictures, strict=True)
    )
    last = tuned.seed + len(pictures[0]) - 1
    return (
        f"<section><h2>The same seeds, side by side</h2><div class=shown>{figures}</div><p class=note>Seeds "
        f"{tuned.seed} to {last}; another program is another path from the same noise, so details differ.</p></section>"
    )


def _table(tuned: Tuned) -> str:
    rows = "".join(f"<tr>{''.join(_cells(one))}</tr>" for one in (*_base(tuned), *tuned.programs))
    names = ("passes", "steps", "guided", "an image", "distance", "kernel x 1000", "accuracy")
    head = "".join(f"<th>{name}</th>" for name in names)
    return (
        f"<section><h2>Figures</h2><div class=scroll><table><thead><tr><th></th>{head}</tr></thead><tbody>"
        f"{rows}</tbody></table></div><p class=note>Passes of the network: a guided step takes two. Distance with "
        "its standard error: what another set of seeds moves it by.</p></section>"
    )


def _cells(one: Found) -> Iterator[str]:
    f = one.figures
    accuracy = "" if f.accuracy is None else f"{100 * f.accuracy:.1f} %"
    distance = f"{f.distance:.4g} &plusmn; {f.noise:.2g}"
    yield f"<th scope=row>{escape(_called(one))}</th>"
    texts = (one.passes, one.steps, one.guided, _time(one.seconds), distance, f"{1000 * f.kernel:.2f}", accuracy)
    yield from (f"<td>{text}</td>" for text in texts)


def _how(tuned: Tuned) -> str:
    judged = tuned.judged
    features = judged.features or "an untrained network of ours"
    rows = [
        ("Features", f"{judged.dimensions} of {escape(features)}"),
        ("Reference", f"{escape(judged.reference)}, {judged.reference_count} pictures"),
        ("Machine", escape(tuned.machine)),
        ("Search", f"{tuned.trials} trials, {tuned.seconds / 60:.0f} minutes in all"),
        ("Made by", escape(tuned.made_by)),
    ]
    return facts(rows)


def _base(tuned: Tuned) -> list[Found]:
    return [] if tuned.baseline is None else [tuned.baseline]


def _called(one: Found) -> str:
    return f"{one.engine}: {one.name}"


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
