"""A comparison as files: `quality.json` for machines, `report.html` for people, which loads nothing from outside."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from ...runtime.errors import RequestError
from ...runtime.files import check_writable, write_text
from ...runtime.pictures.images import grid
from ...runtime.replacing import folder_written_atomically
from .compare import Comparison
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


def summary_lines(quality: Quality) -> list[tuple[str, str, str, str]]:
    """(figure, A, B, what chance does: A with other seeds), as text. What the command prints and the page shows."""
    q = quality
    rows = [
        ("drift of latents", "", _number(q.drift.relative), _number(q.drift_between_seeds)),
        ("worst image's drift", "", _number(q.drift.worst), ""),
    ]
    if q.drift.broken:
        rows.append(("images not finite", "0", str(q.drift.broken), ""))
    if q.pixels is not None:
        rows.append(("PSNR of pictures", "", _db(q.pixels.psnr), ""))
        rows.append(("worst picture's PSNR", "", _db(q.pixels.worst_psnr), ""))
    if q.features is not None:
        f = q.features
        three = (f.a, f.b, f.a_other_seeds)
        rows.append(("accuracy", *(f"{100 * one.accuracy:.2f} %" for one in three)))  # type: ignore[arg-type]
        if f.reference is not None:
            rows.append(("Frechet to reference", *(_number(one.frechet_distance) for one in three)))  # type: ignore[arg-type]
            rows.append(("kernel to reference", *(_kernel(one.kernel_distance) for one in three)))  # type: ignore[arg-type]
        rows.append(("Frechet to A", "", _number(f.frechet_between), _number(f.frechet_between_seeds)))
        rows.append(("kernel to A", "", _kernel(f.kernel_between), _kernel(f.kernel_between_seeds)))
    rows.append(("graphs on disk", _size(q.a.graph_bytes), _size(q.b.graph_bytes), ""))
    if q.speed is not None:
        rows.append(("one step", f"{q.speed.a.median_ms:.1f} ms", f"{q.speed.b.median_ms:.1f} ms", ""))
        rows.append(("speed against A", "", f"{q.speed.ratio:.2f}x", ""))
        rows.append(("slowest, fastest round", "", f"{q.speed.ratio_min:.2f}x, {q.speed.ratio_max:.2f}x", ""))
        rows.append(("peak memory", _size(q.speed.a.peak_bytes), _size(q.speed.b.peak_bytes), ""))
    return rows


def report_html(comparison: Comparison) -> str:
    """The whole page. Everything that comes from a file (names, labels) is escaped."""
    q = comparison.quality
    title = f"{q.b.name} against {q.a.name}"
    parts = [
        f"<header><p class=kicker>ditedge quality report</p><h1>{escape(q.b.name)}"
        f" <span>against {escape(q.a.name)}</span></h1><p class=lead>{_lead(q)}</p></header>",
        _cards(q),
        _gates(q),
        _pictures(comparison),
        _curve(q),
        _table(q),
        _provenance(q),
    ]
    body = "\n".join(filter(None, parts))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _lead(q: Quality) -> str:
    s = q.settings
    return (
        f"{s.count} images from the same seeds ({s.seed} to {s.seed + s.count - 1}) and classes through both bundles: "
        f"{escape(s.program)}, {s.steps} steps, guidance {s.guidance:g}. A is {escape(_how(q, 'a'))}, "
        f"B is {escape(_how(q, 'b'))}."
    )


def _how(q: Quality, which: str) -> str:
    one = q.a if which == "a" else q.b
    threads = f", {one.threads} thread(s)" if one.threads else ""
    return f"{one.name} ({one.provider}{threads})"


def _cards(q: Quality) -> str:
    size = 100 * q.b.graph_bytes / q.a.graph_bytes
    cards = [
        ("Drift", _number(q.drift.relative), f"other seeds: {_number(q.drift_between_seeds)}"),
        ("Size", f"{size:.0f} %", f"{_size(q.b.graph_bytes)} of {_size(q.a.graph_bytes)}"),
    ]
    if q.pixels is not None:
        cards.insert(1, ("PSNR", _db(q.pixels.psnr), f"worst picture: {_db(q.pixels.worst_psnr)}"))
    if q.features is not None:
        f = q.features
        change = 100 * (f.b.accuracy - f.a.accuracy)
        noise = 100 * (f.a_other_seeds.accuracy - f.a.accuracy)
        cards.append(("Accuracy", f"{change:+.2f} pt", f"A with other seeds: {noise:+.2f} pt"))
        if f.a.frechet_distance and f.b.frechet_distance is not None and f.a_other_seeds.frechet_distance is not None:
            change = 100 * (f.b.frechet_distance / f.a.frechet_distance - 1)
            noise = 100 * (f.a_other_seeds.frechet_distance / f.a.frechet_distance - 1)
            cards.append(("Frechet", f"{change:+.1f} %", f"A with other seeds: {noise:+.1f} %"))
    if q.speed is not None:
        cards.append(("Speed", f"{q.speed.ratio:.2f}x", f"{q.speed.b.median_ms:.1f} ms a step"))
    inside = "".join(
        f"<div class=card><p class=name>{name}</p><p class=value>{value}</p><p class=note>{note}</p></div>"
        for name, value, note in cards
    )
    return f"<section class=cards>{inside}</section>"


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
        f'<figure><img alt="{name}: {len(images)} pictures" src="{_data_uri(images, columns)}">'
        f"<figcaption><b>{name}</b> {text}</figcaption></figure>"
        for name, text, images in grids
    )
    names = ", ".join(escape(label.split(",")[0]) for label in comparison.labels)
    return (
        f"<section><h2>The same seeds, side by side</h2><div class=grids>{figures}</div>"
        f"<p class=note>Row by row: {names}. Seeds {q.settings.seed} to {q.settings.seed + len(a) - 1}.</p></section>"
    )


def _data_uri(images: np.ndarray, columns: int) -> str:
    """uint8 [n, h, w, 1 or 3] -> one PNG of all, as a data URI."""
    from PIL import Image

    factor = max(1, SHOWN_PIXELS // images.shape[1])
    picture = grid(images, columns, gap=0).repeat(factor, axis=0).repeat(factor, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 310, 76, 18, 14, 60  # of the curve, in SVG units


def _curve(q: Quality) -> str:
    """Relative error over the steps as inline SVG: all images together, and the worst image."""
    relative, worst = [step.relative for step in q.steps], [step.worst for step in q.steps]
    ticks = _ticks(max([value for value in (*relative, *worst) if value is not None], default=0.0))
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


def _ticks(largest: float) -> list[float]:
    """0 and up to five round numbers, the last not below `largest`."""
    if not 0 < largest < np.inf:
        return [0.0, 1.0]
    power = 10.0 ** np.floor(np.log10(largest / 4))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power * 5 >= largest)
    return [float(i * step) for i in range(int(np.ceil(largest / step - 1e-9)) + 1)]


def _table(q: Quality) -> str:
    rows = "".join(
        f"<tr><th scope=row>{name}</th><td>{a}</td><td>{b}</td><td>{chance}</td></tr>"
        for name, a, b, chance in summary_lines(q)
    )
    notes = [
        "A' is A once more with other seeds: B is as good as A where its distance from A is of that size."
        if q.features is not None
        else "A' is A once more with other seeds.",
    ]
    if q.features is not None:
        f = q.features
        reference = f", reference {escape(f.reference)} ({f.reference_count} pictures)" if f.reference else ""
        notes.append(
            f"Distances are in the {f.dimensions} features of {escape(f.model)}{reference}; kernel distances are "
            "times 1000. They depend on the number of images, so compare only figures of equal counts."
        )
    if q.speed is not None:
        notes.append(
            f"Speed: {q.speed.rounds} rounds of one step in turns, each bundle in a process of its own, batch "
            f"{q.speed.batch} ({q.speed.evaluations} network evaluations)."
        )
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
    body = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows)
    return f"<footer><dl>{body}</dl></footer>"


def _number(value: float | None) -> str:
    if value is None:
        return "not finite"
    return "0" if value == 0 else f"{value:.4f}" if value >= 0.001 else f"{value:.1e}"


def _kernel(value: float | None) -> str:
    return "" if value is None else f"{1000 * value:.2f}"


def _db(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f} dB"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


STYLE = """
:root{color-scheme:light dark;--back:#f6f7f9;--card:#fff;--ink:#1b1f27;--soft:#5c6573;--line:#e1e5ea;--all:#1f5fd0;
--worst:#d9822b;--good:#1a7f4b;--bad:#c0313a}
@media (prefers-color-scheme:dark){:root{--back:#12151b;--card:#1b2029;--ink:#e8ebf0;--soft:#9aa4b2;--line:#2d3440;
--all:#78a9ff;--worst:#f0ac61;--good:#57c78b;--bad:#ff7b82}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 20px 48px}
.kicker{margin:0;color:var(--soft);font-size:13px;letter-spacing:.06em;text-transform:uppercase}
h1{margin:.1em 0 .3em;font-size:clamp(24px,5vw,34px);line-height:1.2;overflow-wrap:anywhere}
h1 span{color:var(--soft);font-weight:400}
h2{margin:0 0 12px;font-size:18px}
.lead{margin:0 0 20px;color:var(--soft);max-width:75ch;overflow-wrap:anywhere}
section,footer{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:18px 20px;margin:0 0 16px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(148px,1fr));gap:12px;background:none;border:0;padding:0}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px 16px}
.card p{margin:0}.name{color:var(--soft);font-size:13px}
.value{font-size:26px;font-weight:650;font-variant-numeric:tabular-nums;white-space:nowrap}
.note{color:var(--soft);font-size:13.5px;margin:8px 0 0}
.gates{list-style:none;margin:0;padding:0}.gates li{padding:4px 0;overflow-wrap:anywhere}
.gates b{display:inline-block;min-width:4.6em}.pass b{color:var(--good)}.fail b{color:var(--bad)}
.grids{display:grid;grid-template-columns:repeat(3,1fr);gap:14px}
figure{margin:0}figure img{display:block;width:100%;height:auto;border-radius:6px;image-rendering:pixelated}
figcaption{margin-top:6px;font-size:13.5px;color:var(--soft);overflow-wrap:anywhere}figcaption b{color:var(--ink)}
svg{display:block;width:100%;height:auto;margin-top:8px}
svg text{fill:var(--soft);font-size:13px;font-family:inherit}
.rule{stroke:var(--line)}polyline{fill:none;stroke-width:2.2;stroke-linejoin:round}
polyline.all{stroke:var(--all)}polyline.worst{stroke:var(--worst)}circle.all{fill:var(--all)}circle.worst{fill:var(--worst)}
.key{display:inline-block;margin-left:10px;white-space:nowrap}
.key::before{content:"";display:inline-block;width:18px;height:3px;border-radius:2px;vertical-align:middle;margin-right:6px}
.key.all::before{background:var(--all)}.key.worst::before{background:var(--worst)}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:7px 10px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th[scope=row]{text-align:left;font-weight:400;color:var(--soft);white-space:normal}
thead th{font-size:13px;color:var(--soft)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 16px;margin:0;font-size:13.5px}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}code{font-size:12.5px}
@media (max-width:640px){main{padding:18px 12px 32px}.grids{grid-template-columns:1fr}section,footer{padding:14px}
.cards{grid-template-columns:1fr 1fr;padding:0}.value{font-size:21px}th,td{padding:6px 4px;font-size:13px}
svg text{font-size:21px}}
""".strip()
