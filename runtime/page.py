"""What the pages that we write share: a frame that loads nothing from outside, light and dark, for telephones, too."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def page(title: str, body: str, style: str = "") -> str:
    """A whole HTML page. title: plain text; body: HTML; style: rules of this page beside `STYLE`."""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def cards(rows: Iterable[tuple[str, str, str]]) -> str:
    """Figures to be seen first: (name, value, note), as HTML."""
    inside = "".join(
        f"<div class=card><p class=name>{name}</p><p class=value>{value}</p><p class=note>{note}</p></div>"
        for name, value, note in rows
    )
    return f"<section class=cards>{inside}</section>"


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """What a page ends with: (name, text), as HTML."""
    return f"<footer><dl>{''.join(f'<dt>{name}</dt><dd>{text}</dd>' for name, text in rows)}</dl></footer>"


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
