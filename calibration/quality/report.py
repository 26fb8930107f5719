"""A comparison as files: `quality.json` for machines, `report.html` for people, which loads nothing from outside."""

from __future__ import annotations

import base64
import io
import os
from html import escape
from pathlib import Path

import numpy as np

from ...runtime.errors import RequestError
from ...runtime.files import check_writable, write_text
from ...runtime.page import cards, facts, page
from ...runtime.pictures.images import grid
from ...runtime.replacing import folder_written_atomically
from .compare import Comparison
from .curve import curve
from .metric import Line
from .metrics import METRICS
from .record import Quality

REPORT_FILES = ("quality.json", "report.html")
DIFFERENCE_GAIN = 8  # of the difference pictures
SHOWN_PIXELS = 128  # smaller pictures are enlarged by a whole factor, so that no browser blurs them


def write_report(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes quality.json and report.html as `folder`, both or neither; an older report is replaced -> the files.

    Raises RequestError as `check_report_folder` does.
    """
    content = comparison.quality.model_dump_json(indent=1) + "\n", report_html(comparison)
    target = folder.resolve() if folder.is_symlink() else folder  # the link stays
    with folder_written_atomically(target, check_report_folder) as made:
        for name, text in zip(REPORT_FILES, content, strict=True):
            write_text(made / name, text)
    return [folder / name for name in REPORT_FILES]


def check_report_folder(folder: Path) -> None:
    """Raises RequestError now when `write_report` could not write there later, or would take something else away."""
    if not folder.name:
        raise RequestError(f"cannot write {folder}: give a folder with a name, such as --out {Path('report')}")
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise RequestError(f"cannot write {folder}: {existing} is a file")
    other = sorted(set(os.listdir(folder)) - set(REPORT_FILES)) if folder.exists() else []
    if other:
        raise RequestError(f"{folder} is not a report alone: it holds {other[0]}; give --out {folder / 'report'}")
    check_writable(folder.absolute().parent / REPORT_FILES[0])


def difference(a: np.ndarray, b: np.ndarray, gain: int = DIFFERENCE_GAIN) -> np.ndarray:
    """|a - b| * gain, uint8; black is equal."""
    return np.minimum(np.abs(a.astype(np.int32) - b.astype(np.int32)) * gain, 255).astype(np.uint8)


def summary_lines(quality: Quality) -> list[Line]:
    """(figure, A, B, what chance does: A with other seeds), as text. What the command prints and the page shows."""
    return [line for metric in METRICS.values() for line in metric.lines(quality)]


def table(quality: Quality) -> list[str]:
    """What `compare` prints."""
    settings = quality.settings
    of = f" of {len(settings.prompts)} prompts" if settings.prompts else ""
    known = f"; A's pictures of {settings.sample_set}" if settings.sample_set is not None else ""
    lines = [
        f"{settings.count} images{of}, {settings.program}, guidance {settings.guidance:g}{known}",
        f"{'':22} {'A':>12} {'B':>22} {'A, other seeds':>15}",
    ]
    rows = summary_lines(quality)
    return lines + [f"{name:22} {a:>12} {b:>22} {other:>15}".rstrip() for name, a, b, other in rows]


def report_html(comparison: Comparison) -> str:
    """The whole page. Everything that comes from a file (names, labels) is escaped."""
    q = comparison.quality
    title = f"{q.b.name} against {q.a.name}"
    parts = [
        f"<header><p class=kicker>ditedge quality report</p><h1>{escape(q.b.name)}"
        f" <span>against {escape(q.a.name)}</span></h1><p class=lead>{_lead(q)}</p></header>",
        cards(card for metric in METRICS.values() for card in metric.cards(q)),
        _gates(q),
        _pictures(comparison),
        curve(q),
        _table(q),
        _provenance(q),
    ]
    body = "\n".join(filter(None, parts))
    return page(title, body)


def _lead(q: Quality) -> str:
    s = q.settings
    return (
        f"{s.count} images from the same seeds ({s.seed} to {s.seed + s.count - 1}) and "
        f"{f'{len(s.prompts)} prompts' if s.prompts else 'classes'} through both bundles: "
        f"{escape(s.program)}, {s.steps} steps, guidance {s.guidance:g}. A is {escape(_how(q, 'a'))}, "
        f"B is {escape(_how(q, 'b'))}."
    )


def _how(q: Quality, which: str) -> str:
    one = q.a if which == "a" else q.b
    threads = f", {one.threads} thread(s)" if one.threads else ""
    return f"{one.name} ({one.provider}{threads})"


def _gates(q: Quality) -> str:
    if not q.gates:
        return ""
    rows = "".join(
        f"<li class={'pass' if gate.passed else 'fail'}><b>{'passed' if gate.passed else 'FAILED'}</b> "
        f"{escape(gate.sentence)}</li>"
        for gate in q.gates
    )
    return f"<section><h2>Gate</h2><ul class=gates>{rows}</ul></section>"


def _pictures(comparison: Comparison) -> str:
    a, b = comparison.images_a, comparison.images_b
    if a is None or b is None or not len(a):
        return ""
    columns = 4 if len(a) > 4 else len(a)
    q = comparison.quality
    grids = [
        ("A", escape(q.a.name), a),
        ("B", escape(q.b.name), b),
        ("Difference", f"{DIFFERENCE_GAIN} times |A - B|, black is equal", difference(a, b)),
    ]
    figures = "".join(
        f'<figure><img alt="{name}: {len(images)} pictures" src="{data_uri(images, columns)}">'
        f"<figcaption><b>{name}</b> {text}</figcaption></figure>"
        for name, text, images in grids
    )
    names = ", ".join(escape(label.split(",")[0]) for label in comparison.labels)
    if q.settings.prompts:
        names = "; ".join(map(escape, comparison.labels))
    return (
        f"<section><h2>The same seeds, side by side</h2><div class=grids>{figures}</div>"
        f"<p class=note>Row by row: {names}. Seeds {q.settings.seed} to {q.settings.seed + len(a) - 1}.</p></section>"
    )


def data_uri(images: np.ndarray, columns: int) -> str:
    """uint8 [n, h, w, 1 or 3] -> one PNG of all, as a data URI."""
    from PIL import Image

    factor = max(1, SHOWN_PIXELS // images.shape[1])
    picture = grid(images, columns, gap=0).repeat(factor, axis=0).repeat(factor, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _table(q: Quality) -> str:
    rows = "".join(
        f"<tr><th scope=row>{name}</th><td>{a}</td><td>{b}</td><td>{chance}</td></tr>"
        for name, a, b, chance in summary_lines(q)
    )
    first = "A' is A once more with other seeds"
    if q.features is not None:
        first += ": B is as good as A where its distance from A is of that size"
    notes = [f"{first}.", *(note for metric in METRICS.values() for note in metric.notes(q))]
    text = "".join(f"<p class=note>{note}</p>" for note in notes)
    return (
        "<section><h2>Figures</h2><div class=scroll><table><thead><tr><th></th><th>A</th><th>B</th><th>A'</th></tr>"
        f"</thead><tbody>{rows}</tbody></table></div>{text}</section>"
    )


def _provenance(q: Quality) -> str:
    rows = [
        ("A", f"{escape(_how(q, 'a'))}, manifest <code>{q.a.manifest_sha256[:16]}</code>"),
        ("B", f"{escape(_how(q, 'b'))}, manifest <code>{q.b.manifest_sha256[:16]}</code>"),
    ]
    if q.features is not None:
        rows.append(("Features", f"{escape(q.features.model)}, <code>{q.features.model_sha256[:16]}</code>"))
    rows.append(("Made by", escape(q.made_by)))
    return facts(rows)
